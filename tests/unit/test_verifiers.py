"""Finding the answer of a completion, and saying whether it is right."""

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkpoint.config.rewards import OverlongConfig
from forkpoint.rewards.build import CustomFunction
from forkpoint.rewards.scorer import overlong_penalty
from forkpoint.verifiers import FormatVerifier, IntegerVerifier, MathVerifier
from forkpoint.verifiers.answers import extract_answer, last_boxed

# ---- finding the answer --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{7}", "7"),
        (r"\boxed{3}, no: \boxed{ 4 }.", "4"),  # the last one, stripped
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),  # escaped braces need no partner
        (r"\boxed{a \\}", r"a \\"),  # a line break does not escape the brace after it
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{1} then \boxed{2", "1"),  # the last closed one
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed 7", None),
        (r"\boxed{}", ""),
        ("7", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@settings(deadline=None)
@given(st.recursive(st.text("ab1\\, ", max_size=3), lambda s: s.map(lambda t: "{" + t + "}")))
def test_box_gives_back_what_was_put_in_if_its_braces_balance(inside: str) -> None:
    inside = inside.replace("\\", "")
    assert last_boxed("draft \\boxed{0} \\boxed{" + inside + "} end}") == inside.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer> 12 </answer>", "12"),
        ("<answer>1</answer> <answer>2</answer>", "2"),
        ("<answer>a\nb</answer>", "a\nb"),
        ("<answer>12", None),
        ("12", None),
    ],
)
def test_tag(text: str, expected: str | None) -> None:
    assert extract_answer(text, "tag") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 and then 42.", "42"),
        ("it is -7", "-7"),
        ("costs $1,234,567.50", "1234567.50"),
        ("1,2", "2"),  # a list, not twelve
        ("12, 13,", "13"),
        ("1,2345", "2345"),
        ("5-2", "2"),  # a difference, not minus two
        ("5 - 2 = 3", "3"),
        ("x=-2", "-2"),
        ("none", None),
        ("", None),
    ],
)
def test_number(text: str, expected: str | None) -> None:
    assert extract_answer(text, "number") == expected


@settings(deadline=None)
@given(st.integers(-(10**9), 10**9))
def test_number_reads_thousands_separators(value: int) -> None:
    assert extract_answer(f"first 99, then {value:,}.", "number") == str(value)


def test_text_is_all_of_it() -> None:
    assert extract_answer(" the whole\nthing ", "text") == "the whole\nthing"
    assert extract_answer(" \n", "text") is None


@pytest.mark.parametrize(
    ("answer_format", "draft", "final"),
    [
        ("tag", "<answer>1</answer>", "<answer>2</answer>"),
        ("boxed", r"\boxed{1}", r"\boxed{2}"),
        ("number", "1", "2"),
        ("text", "1", "2"),
    ],
)
def test_thoughts_are_not_the_answer(answer_format: str, draft: str, final: str) -> None:
    assert extract_answer(f"<think>{draft}</think>{final}", answer_format) == "2"
    assert extract_answer(f"<think>{draft}</think></think>{final}", answer_format) == "2"
    assert extract_answer(f"{final}<think>{draft}</think>", answer_format) is None
    assert extract_answer(draft, answer_format) == "1"  # never thought aloud


# ---- verifiers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gold", [25, "25", "025", "25.0", 25.0, "$25$", "5 * 5 = 25 #### 25"])
@pytest.mark.parametrize("given", ["25", "025", "25.0", "25.", "+25", " $25$ ", r"\$25"])
def test_spellings_of_one_integer_are_equal(gold: Any, given: str) -> None:
    verify = IntegerVerifier("answer")
    assert verify({"answer": gold}, rf"\boxed{{{given}}}") == 1.0


@pytest.mark.parametrize("given", ["1,234", "1{,}234", r"1\,234", r"1,\!234", "1234"])
def test_thousands_in_latex(given: str) -> None:
    assert IntegerVerifier("answer")({"answer": "#### 1,234"}, rf"\boxed{{{given}}}") == 1.0


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        (25, "25"),  # no box
        (25, r"\boxed{25.5}"),
        (25, r"\boxed{-25}"),
        (25, r"\boxed{25} or \boxed{26}"),
        (25, r"<think>\boxed{25}</think> it is \boxed{24}"),
        (25, r"<think>\boxed{25}</think> it is 25"),
        (12, r"\boxed{1,2}"),  # a list
        (25, r"\boxed{2.5e1}"),
        (25, r"\boxed{25 or 26}"),
        (25, r"\boxed{}"),
        (25, r"\boxed{nan}"),
        (2**53, rf"\boxed{{{2**53 + 1}}}"),  # equal as floats
        (10**18, rf"\boxed{{{10**18 + 1}}}"),
        (25, rf"\boxed{{{'9' * 10_000}}}"),  # more digits than Python reads
    ],
)
def test_other_answers_are_wrong(gold: int, text: str) -> None:
    assert IntegerVerifier("answer")({"answer": gold}, text) == 0.0


@pytest.mark.parametrize("gold", ["one half", "", "2.5", None, "nan", "1,2"])
def test_gold_that_is_no_integer_leaves_the_sample_out(gold: Any) -> None:
    assert IntegerVerifier("answer")({"answer": gold}, r"\boxed{25}") is None


def test_nested_columns() -> None:
    columns = {"reward_model": {"ground_truth": "25"}}
    assert IntegerVerifier("reward_model.ground_truth")(columns, r"\boxed{25}") == 1.0
    with pytest.raises(KeyError, match="truth"):
        IntegerVerifier("reward_model.truth")(columns, r"\boxed{25}")


@settings(deadline=None)
@given(st.integers(-(10**30), 10**30), st.integers(-(10**30), 10**30))
def test_integers_are_compared_exactly(gold: int, given: int) -> None:
    verify = IntegerVerifier("answer")
    assert verify({"answer": gold}, rf"\boxed{{{given}}}") == float(gold == given)
    assert verify({"answer": f"{gold:,}"}, rf"\boxed{{{gold}}}") == 1.0


@pytest.mark.parametrize(
    ("gold", "boxed"),
    [
        (r"\frac{1}{2}", "1/2"),
        (r"\frac12", r"\frac12"),  # without braces, and yet good LaTeX
        ("1/2", "0.5"),
        (r"\sqrt{8}", r"2\sqrt2"),
        ("x^2+2x+1", "(x+1)^2"),
        ("25", "025"),
        ("25", "25.0"),
        (r"$\frac{1}{2}$", r"\frac{2}{4}"),  # delimiters of its own
        (r"\boxed{7}", "7"),
        (r"\$18", "18"),  # dollars that are money
        ("5", r"5 \text{ cm}"),
        ("1000", "1,000"),
        (r"\{1,2\}", r"\{2,1\}"),
        (r"\text{Evelyn}", r"\text{Evelyn}"),
        ("Evelyn", "Evelyn"),
        ("1<x<2", "(1,2)"),
    ],
)
def test_equivalent_answers(gold: str, boxed: str) -> None:
    assert MathVerifier("answer")({"answer": gold}, rf"thus \boxed{{{boxed}}}.") == 1.0


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("113204", r"\boxed{113} then \boxed{204}"),  # math-verify alone reads one number
        ("113", r"\boxed{113} then \boxed{204}"),
        ("113", r"\boxed{113}\boxed{204}"),
        ("7", "the answer is 7"),  # no box
        ("7", r"\boxed{7"),
        ("7", r"\boxed{}"),
        ("7", r"<think>\boxed{7}</think> \boxed{8}"),
        (r"\frac{1}{3}", r"\boxed{0.333}"),
        ("(1,2)", r"\boxed{1<x<2}"),  # an interval is not asked for
    ],
)
def test_answers_that_are_not_equivalent(gold: str, text: str) -> None:
    assert MathVerifier("answer")({"answer": gold}, text) == 0.0


def test_last_of_adjacent_boxes_counts() -> None:
    assert MathVerifier("answer")({"answer": "204"}, r"\boxed{113} then \boxed{204}") == 1.0


@pytest.mark.parametrize("gold", ["", "   ", "$$", r"\boxed{}"])
def test_gold_that_math_verify_cannot_read_leaves_the_sample_out(gold: str) -> None:
    assert MathVerifier("answer")({"answer": gold}, r"\boxed{7}") is None


@pytest.mark.parametrize("gold", [None, float("nan"), True])
@pytest.mark.parametrize("said", ["None", "nan", "True", "3"])
def test_a_gold_that_is_not_there_is_no_gold(gold: object, said: str) -> None:
    assert MathVerifier("answer")({"answer": gold}, rf"\boxed{{{said}}}") is None


def test_math_verify_does_not_complain_of_its_limits(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import math_verify.grader
    import math_verify.parser

    monkeypatch.setattr(math_verify.parser, "TIMEOUT_WARNING_SHOWN", False)
    monkeypatch.setattr(math_verify.grader, "TIMEOUT_WARNING_SHOWN", False)
    assert MathVerifier("answer")({"answer": "7"}, r"\boxed{7}") == 1.0
    assert caplog.records == []


def test_format_matches_all_of_the_completion() -> None:
    verify = FormatVerifier(r"<think>.*</think>.*\d")
    assert verify({}, "<think>so\nfar</think>\n42") == 1.0  # the dot matches a newline
    assert verify({}, "<think>so</think>42 ") == 0.0
    assert verify({}, "well, <think>so</think>42") == 0.0


@pytest.mark.parametrize(
    "verifier",
    [IntegerVerifier("a"), MathVerifier("a"), FormatVerifier("a"), CustomFunction("a:b")],
)
def test_verifiers_travel_to_a_worker(verifier: Any) -> None:
    assert pickle.loads(pickle.dumps(verifier)) == verifier


# ---- the length penalty --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (60, 0.0),
        (80, 0.0),  # limit - buffer: just not yet
        (81, -0.1),  # 2 * (80 - 81) / 20
        (90, -1.0),  # 2 * (80 - 90) / 20
        (100, -2.0),  # all of it at the limit
    ],
)
def test_overlong_penalty_by_hand(length: int, expected: float) -> None:
    config = OverlongConfig(buffer=20, penalty=2.0)
    assert overlong_penalty(length, 100, config) == pytest.approx(expected)


def test_no_buffer_no_penalty() -> None:
    assert overlong_penalty(1000, 100, OverlongConfig(buffer=0, penalty=2.0)) == 0.0
