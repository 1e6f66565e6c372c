r"""Finding answers is linear in the text, whatever a degenerate completion repeats; and which boxes
are one answer: the table of answers that must, and must not, count as right."""

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.verifiers import IntegerVerifier, MathVerifier
from forkpoint.verifiers.answers import extract_answer, last_boxed, last_list, last_tagged
from forkpoint.verifiers.math import with_point

# ---- the same as a slow and simple search --------------------------------------------------------

PIECES = ("\\boxed{", "\\boxed", "{", "}", "\\", "\\{", "\\\\", "boxed{", "7", " ", "</think>")


def slow_last_boxed(text: str) -> str | None:
    """From the right: the first box that closes, character by character."""
    for start in range(len(text), -1, -1):
        if not text.startswith("\\boxed{", start):
            continue
        depth, i, first = 0, start + len("\\boxed"), start + len("\\boxed{")
        while i < len(text):
            if text[i] == "\\":
                i += 2
                continue
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return text[first:i].strip()
            i += 1
    return None


@given(st.lists(st.sampled_from(PIECES), max_size=24).map("".join))
def test_last_boxed_is_what_a_search_from_the_right_finds(text: str) -> None:
    assert last_boxed(text) == slow_last_boxed(text)


@given(st.lists(st.sampled_from(("<answer>", "</answer>", "a", "\n", "<")), max_size=20))
def test_last_tagged_is_the_last_match_of_the_obvious_pattern(pieces: list[str]) -> None:
    import re

    text = "".join(pieces)
    found = re.findall("<answer>(.*?)</answer>", text, re.DOTALL)
    assert last_tagged(text) == (found[-1].strip() if found else None)


# ---- in linear time ------------------------------------------------------------------------------

HOSTILE = {
    "unclosed boxes": r"\boxed{",
    "unclosed boxes, one closed": r"} \boxed{\boxed{",
    "boxes in boxes": r"\boxed{7} \boxed{{",
    "adjacent boxes": r"\boxed{7}",
    "backslashes": "\\",
    "braces": "{",
    "unclosed tags": "<answer>",
    "closed tags": "<answer>7</answer>",
    "ends without tags": "</answer>",
    "digits": "1",
    "thousands": "111,",
    "thousands that fail": "111,1111,",
    "minus signs": "-",
    "separators": r", and \quad ",
}


def best_of_three(call: Callable[[], object]) -> float:
    """CPU seconds: what else the machine does is no fault."""
    times = []
    for _ in range(3):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return min(times)


@pytest.mark.parametrize("answer_format", ["boxed", "tag", "number", "list"])
@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
def test_four_times_the_text_takes_four_times_the_time(piece: str, answer_format: str) -> None:
    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        if answer_format == "list":
            return best_of_three(lambda: last_list(text))
        return best_of_three(lambda: extract_answer(text, answer_format))

    before = seconds(4_000)
    for size in (16_000, 64_000, 256_000, 1_024_000):  # a quadratic search fails at the second
        after = seconds(size)
        assert after < 8 * before + 0.02  # 16 times if it is quadratic
        before = after


# ---- boxes that are one answer -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        ("none", []),
        (r"\boxed{7", []),
        (r"\boxed{1}", ["1"]),
        (r"\boxed{1} and \boxed{2}", ["1", "2"]),
        (r"$\boxed{1}$, $\boxed{2}$, and $\boxed{3}$", ["1", "2", "3"]),
        (r"\boxed{1}; \boxed{2}", ["1", "2"]),
        ("\\boxed{1}\n\n\\boxed{2}", ["1", "2"]),
        (r"\[\boxed{-2} \quad \text{and} \quad \boxed{1}.\]", ["-2", "1"]),
        (r"$x = \boxed{1}$ and $y_2 = \boxed{2}$", ["1", "2"]),
        (r"\boxed{\boxed{1}, \boxed{2}}", ["1", "2"]),
        # words in between: the earlier one was a draft
        (r"\boxed{1} then \boxed{2}", ["2"]),
        (r"\boxed{1}. So \boxed{2}", ["2"]),
        (r"\boxed{1}, no: \boxed{2}", ["2"]),
        (r"\boxed{1} = \boxed{2}", ["2"]),
        (r"\boxed{1} + \boxed{2}", ["2"]),
        (r"\boxed{0} I mean \boxed{1} or \boxed{2}", ["1", "2"]),
        (r"\boxed{1}" + " " * 100 + r"\boxed{2}", ["2"]),
    ],
)
def test_boxes_of_one_list(text: str, contents: list[str]) -> None:
    assert last_list(text) == contents


# ---- mathematics ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("1,2", r"\boxed{1} and \boxed{2}"),
        ("2, 1", r"\boxed{1}, \boxed{2}"),
        (r"\{1,2\}", r"\boxed{2} or \boxed{1}"),
        ("1 or 2", r"\boxed{1}$ or $\boxed{2}"),
        (r"\boxed{1}\boxed{2}", r"$\boxed{1,2}$"),
        (r"\boxed{1,-2}", r"\[ \boxed{-2} \quad \text{and} \quad \boxed{1}. \]"),
        (r"\boxed{1}, \boxed{2}", r"\boxed{1}\boxed{2}"),
        ("x=1,2", r"$x = \boxed{1}$ or $x = \boxed{2}$"),
        ("x=1, y=2", r"$x=\boxed{1}$ and $y=\boxed{2}$"),
        ("(1,2)", r"$x=\boxed{1}$, $y=\boxed{2}$"),
        ("1,2,3", r"\boxed{1,2} and \boxed{3}"),
        ("(1,2),(3,4)", r"\boxed{(1,2)}, \boxed{(3,4)}"),
        ("x<1 or x>2", r"\boxed{x<1} or \boxed{x>2}"),
        (r"\text{Ann}, \text{Bob}", r"\boxed{\text{Ann}} and \boxed{\text{Bob}}"),
        ("2", r"\boxed{2}, \boxed{2}"),  # said twice
        ("204", r"\boxed{113} then \boxed{204}"),  # the draft was wrong, the answer is right
        # decimal commas
        ("0.5", r"\boxed{0,5}"),
        (r"\frac{1}{2}", r"\boxed{0{,}5}"),
        ("3.14", r"\boxed{3,14}"),
        ("-0.5", r"\boxed{-0,5}"),
        ("1.5", r"\boxed{x = 1,5}"),
        ("3.14", r"\boxed{3,14 \text{ cm}}"),
        ("0.125", r"\boxed{0,125}"),  # no thousands begin with 0
        ("1234.5678", r"\boxed{1234,5678}"),
        (r"50.5\%", r"\boxed{50,5\%}"),
        ("0.5, 1.5", r"\boxed{0,5} and \boxed{1,5}"),
        ("1,2", r"\boxed{1,2}"),  # still a list
        ("1234", r"\boxed{1,234}"),
        ("1234567", r"\boxed{1,234,567}"),
        # thin spaces, and the full stop of a sentence
        ("12000", r"\boxed{12\,000}"),
        ("-1234567.5", r"\boxed{-1~234~567.5}"),
        (r"12\,000", r"\boxed{12000}"),
        ("7", r"\boxed{x = 7.}"),
    ],
)
def test_right_in_several_boxes_or_with_a_decimal_comma(gold: str, text: str) -> None:
    assert MathVerifier("answer")({"answer": gold}, text) == 1.0


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        # a hedge: the gold is among the answers
        ("2", r"\boxed{1} or \boxed{2}"),
        ("2", r"\boxed{2} or \boxed{1}"),
        ("2", r"\boxed{1}\boxed{2}"),
        ("2", r"\boxed{1}, \boxed{2}, \boxed{3}"),
        ("2", r"$x = \boxed{1}$, $x = \boxed{2}$"),
        ("x=2", r"$x = \boxed{1}$, $x = \boxed{2}$"),
        ("x<1", r"\boxed{x<1} or \boxed{x>2}"),
        ("(1,2)", r"\boxed{(1,2)}, \boxed{(3,4)}"),
        # too few, too many, others
        ("1,2", r"\boxed{1}"),
        ("1,2", r"\boxed{2}"),
        ("1,2", r"\boxed{1}, \boxed{2}, \boxed{3}"),
        ("1,2", r"\boxed{1} and \boxed{3}"),
        ("1,2,3", r"\boxed{1} and \boxed{2}"),
        # drafts before the last answer
        ("1,2", r"\boxed{1,2} is wrong, it is \boxed{3}"),
        ("113", r"\boxed{113} then \boxed{204}"),
        ("1,2", r"\boxed{1}. Then again, \boxed{2}"),
        ("1,2", r"<think>\boxed{1,2}</think> \boxed{3}"),
        ("1,2", r"<think>\boxed{1},</think> \boxed{2}"),
        # numbers joined from neighbouring boxes
        ("12", r"\boxed{1}\boxed{2}"),
        ("12", r"\boxed{1} \boxed{2}"),
        ("12", r"\boxed{1},\boxed{2}"),
        ("1.2", r"\boxed{1},\boxed{2}"),
        ("113204", r"\boxed{113},\boxed{204}"),
        ("113204", r"\boxed{113} and \boxed{204}"),
        ("1000", r"\boxed{1}, \boxed{000}"),
        # an order that matters
        ("(1,2)", r"$x=\boxed{2}$, $y=\boxed{1}$"),
        # commas that are not decimal, or not only
        ("1.234", r"\boxed{1,234}"),
        ("1.2", r"\boxed{(1,2)}"),
        ("1.2", r"\boxed{\{1,2\}}"),
        ("1.2", r"\boxed{[1,2]}"),
        ("1.2", r"\boxed{1, 2}"),
        ("1.23", r"\boxed{1,2,3}"),
        ("12", r"\boxed{1,2}"),
        ("12.5", r"\boxed{1,25}"),
        ("1,2", r"\boxed{1.2}"),
        ("1,25", r"\boxed{1.25}"),
        ("1234", r"\boxed{1,2,3,4}"),
        ("1234", r"\boxed{1,23,4}"),
        ("0.5", r"\boxed{0.5,5}"),
        ("1.5", r"\boxed{\lbrace 1,5 \rbrace}"),
        # thousands that look like a product with 0
        ("0", r"\boxed{12\,000}"),
        ("0", r"\boxed{12 000}"),
        (r"12\,000", r"\boxed{0}"),
        ("12000", r"\boxed{12\,00}"),
        # nothing that can be read
        ("7", r"\boxed{}, \boxed{7}"),
        ("7", r"\boxed{}\boxed{}"),
    ],
)
def test_hostile_candidates_are_wrong(gold: str, text: str) -> None:
    assert MathVerifier("answer")({"answer": gold}, text) == 0.0


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("0,5", "0.5"),
        ("0{,}5", "0.5"),
        (r"\$2,50", r"\$2.50"),
        ("1,234", "1,234"),
        ("x_1 = 1,2", "x_1 = 1,2"),  # more than one number
        ("12,34", "12.34"),
        ("1,2,3", "1,2,3"),
        ("(0,5)", "(0,5)"),
        ("0.5,5", "0.5,5"),
        ("1, 2", "1, 2"),
        ("", ""),
    ],
)
def test_a_decimal_comma_becomes_a_point(number: str, expected: str) -> None:
    assert with_point(number) == expected


# ---- integers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        (26, r"\boxed{25} or \boxed{26}", 0.0),  # a list is no answer to a question with one
        (26, r"\boxed{25}, no: \boxed{26}", 1.0),  # words between: the last box alone
        (25, r"\boxed{25} or \boxed{26}", 0.0),
        (25, r"\boxed{2}\boxed{5}", 0.0),
        (25, r"\boxed{25,0}", 1.0),
        (25, r"\boxed{25,00}", 1.0),
        (25, r"\boxed{25{,}0}", 1.0),
        (25, r"\boxed{25,000}", 0.0),  # thousands
        (25000, r"\boxed{25,000}", 1.0),
        (25, r"\boxed{25,5}", 0.0),
        (25, r"\boxed{2,5}", 0.0),
        (255, r"\boxed{25,5}", 0.0),
        (1234, r"\boxed{1,234.0}", 1.0),
        (1234, r"\boxed{1,234,0}", 1.0),
        (12340, r"\boxed{1,234,0}", 0.0),
        (125, r"\boxed{0,125}", 0.0),  # no thousands begin with 0
        (125, r"\boxed{00{,}125}", 0.0),
    ],
)
def test_integers_with_commas_and_in_several_boxes(gold: int, text: str, right: float) -> None:
    assert IntegerVerifier("answer")({"answer": gold}, text) == right
