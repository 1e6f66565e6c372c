"""Finding the final answer in a completion, in time linear in its length.

What is looked for stands after the end of thinking (``</think>``), if the completion has one, and
the last candidate wins: earlier ones are drafts.
"""

import re
from typing import NamedTuple

OPEN, CLOSE = "<answer>", "</answer>"
NUMBER = re.compile(r"(?:(?<!\d)-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
"""A comma belongs to it only before exactly three digits, a minus sign only if no digit precedes:
``1,2`` and ``5-2`` are two numbers each."""
BOX = "\\boxed"
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
"""A brace, or a backslash with what it escapes."""

SPACE = r"(?:[\s$~*]|\\(?:quad|qquad|[\s\\,;:!()\[\]]))*"
AND = r"(?:[,;&]|\band\b|\bor\b|\\text\{\s*,?\s*(?:and|or)\s*\})"
NAME = r"(?:[A-Za-z](?:_\w|_\{\w{1,3}\})?" + SPACE + "=)?"
LISTED = re.compile(f"{SPACE}(?:{AND}{SPACE})*{NAME}{SPACE}")
"""What may stand between two boxes of one list: separators, and the name of what follows
(``x_2 =``)."""
MOST_BETWEEN = 80
"""Characters between two boxes of one list."""


class Box(NamedTuple):
    """A closed ``\\boxed{..}``: its place in the text, and what is in it, stripped."""

    start: int
    end: int
    content: str


def extract_answer(text: str, answer_format: str) -> str | None:
    """The answer as text, or None if there is none.

    Args:
        answer_format: ``tag`` (``<answer>..</answer>``), ``boxed`` (``\\boxed{..}``), ``number``
            (the last number, thousands separators removed) or ``text`` (all of it, stripped).
    """
    text = after_thinking(text)
    if answer_format == "boxed":
        return last_boxed(text)
    if answer_format == "tag":
        return last_tagged(text)
    if answer_format == "number":
        found = NUMBER.findall(text)
        return found[-1].replace(",", "") if found else None
    return text.strip() or None


def after_thinking(text: str) -> str:
    """What follows the last ``</think>``; all of it without one."""
    return text.rsplit("</think>", 1)[-1]


def last_tagged(text: str) -> str | None:
    """The content of the last ``<answer>..</answer>``, stripped; else None. An opening tag within
    another answer is part of that answer."""
    answer, start = None, text.find(OPEN)
    while start >= 0 and (end := text.find(CLOSE, start + len(OPEN))) >= 0:
        answer = text[start + len(OPEN) : end].strip()
        start = text.find(OPEN, end)
    return answer


def last_boxed(text: str) -> str | None:
    """The content of the last closed ``\\boxed{..}``; else None. Braces inside must balance, except
    escaped ones (``\\left\\{``)."""
    found = boxes(text)
    return found[-1].content if found else None


def last_list(text: str) -> list[str]:
    """The contents of the last closed box and of those listed before it; none without a box.

    ``\\boxed{1} and \\boxed{2}`` is a list of two. Words in between make the earlier box a draft:
    ``\\boxed{1}, no: \\boxed{2}`` is one answer.
    """
    found = boxes(text)
    first = len(found) - 1
    while first > 0:
        between = text[found[first - 1].end : found[first].start]
        if len(between) > MOST_BETWEEN or not LISTED.fullmatch(between):
            break
        first -= 1
    return [box.content for box in found[max(first, 0) :]]


def boxes(text: str) -> list[Box]:
    """The closed boxes in order, those that hold another closed box left out.

    A stack of open braces: each brace is looked at once, however many boxes are never closed.
    """
    open_braces: list[int] = []
    found: list[Box] = []
    for token in BRACE.finditer(text):
        if token[0] == "{":
            open_braces.append(token.start())
        elif token[0] == "}" and open_braces:
            brace = open_braces.pop()
            start = brace - len(BOX)
            is_box = start >= 0 and text.startswith(BOX, start)
            if is_box and not (found and found[-1].start > start):
                found.append(Box(start, token.end(), text[brace + 1 : token.start()].strip()))
    return found
