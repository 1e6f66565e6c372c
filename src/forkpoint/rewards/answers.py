"""Finding the final answer in a completion.

What is looked for stands after the end of thinking (``</think>``), if the completion has one, and
the last candidate wins: earlier ones are drafts.
"""

import re

TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
NUMBER = re.compile(r"(?:(?<!\d)-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
"""A comma belongs to it only before exactly three digits, a minus sign only if no digit precedes:
``1,2`` and ``5-2`` are two numbers each."""
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
"""A brace, or a backslash with what it escapes."""


def extract_answer(text: str, answer_format: str) -> str | None:
    """The answer as text, or None if there is none.

    Args:
        answer_format: ``tag`` (``<answer>..</answer>``), ``boxed`` (``\\boxed{..}``), ``number``
            (the last number, thousands separators removed) or ``text`` (all of it, stripped).
    """
    text = text.rsplit("</think>", 1)[-1]
    if answer_format == "boxed":
        return last_boxed(text)
    if answer_format == "tag":
        found = TAG.findall(text)
        return found[-1].strip() if found else None
    if answer_format == "number":
        found = NUMBER.findall(text)
        return found[-1].replace(",", "") if found else None
    return text.strip() or None


def last_boxed(text: str) -> str | None:
    """The content of the last closed ``\\boxed{..}``; else None. Braces inside must balance, except
    escaped ones (``\\left\\{``)."""
    start = len(text)
    while (start := text.rfind("\\boxed{", 0, start)) >= 0:
        depth = 0
        for found in BRACE.finditer(text, start + len("\\boxed")):
            depth += {"{": 1, "}": -1}.get(found[0], 0)
            if depth == 0:
                return text[start + len("\\boxed{") : found.start()].strip()
    return None
