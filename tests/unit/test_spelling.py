"""Spellings that math-verify would misread, and what they are rewritten to."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkpoint.verifiers import IntegerVerifier, MathVerifier
from forkpoint.verifiers.spelling import readable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"0.\overline{3}", r"\frac{3}{9}"),  # (03 - 0) / 9
        (r"0.1\overline{6}", r"\frac{15}{90}"),  # (016 - 01) / 90
        (r"2.\bar 7".replace(" ", ""), r"\frac{25}{9}"),  # (27 - 2) / 9
        (r"-.\overline{27}", r"-\frac{27}{99}"),
        (r"1,234.\overline{5}", r"1,234.\overline{5}"),  # a separator of thousands before it
        ("3e6", r"3 \times 10^{6}"),
        ("-1.5E-3", r"-1.5 \times 10^{-3}"),
        ("3e6x", "3e6x"),  # no number as a whole
        ("1e999999999", "1e999999999"),
        ("3 1/2", r"3\frac{1}{2}"),
        ("3 1/2 1", "3 1/2 1"),
        (r"12\,000", "12000"),
        ("12\u202f000", "12000"),
        ("12 34", "12 34"),
        ("\u22123", "-3"),
        ("\uff12\uff15", "25"),
        ("\u0662\u0665", "25"),
        ("7\u200b", "7"),
        ("\u221a12", r"\sqrt{12}"),
        ("x\u00b2", "x^2"),
        ("3\u00bd", r"3\frac{1}{2}"),
        (r"2\mathbf{3}", "2{3}"),  # not 23
        (r"\varnothing", r"\emptyset"),
        (r"\degrees", r"\degrees"),  # another command
        (r"\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_readable(text: str, expected: str) -> None:
    assert readable(text) == expected


@settings(deadline=None)
@given(st.integers(0, 999), st.text("0123456789", max_size=3), st.text("0123456789", min_size=1))
def test_a_repeating_decimal_is_the_limit_of_its_digits(
    whole: int, fixed: str, repeated: str
) -> None:
    from fractions import Fraction

    repeated = repeated[:6]
    text = readable(rf"{whole}.{fixed}\overline{{{repeated}}}")
    numerator, denominator = text.removeprefix(r"\frac{").removesuffix("}").split("}{")
    long = Fraction(f"{whole}.{fixed}{repeated * 30}")
    assert abs(Fraction(int(numerator), int(denominator)) - long) <= Fraction(1, 10**30)


@pytest.mark.parametrize(
    ("gold", "boxed", "verdict"),
    [
        ("0", r"0.\overline{3}", 0.0),  # math-verify alone reads it as 0
        ("1/3", r"0.\overline{3}", 1.0),
        ("-1", "i^2", 1.0),
        ("x+i", "x+j", 0.0),
        ("i<5", "i<5", 1.0),
        ("[1,3]", r"1\le x\le 3", 1.0),
        ("[1,3]", "1<x<3", 0.0),
        ("(1,2)", "1<x<2", 0.0),  # the gold may be a point
    ],
)
def test_math_reads_them_as_they_are_meant(gold: str, boxed: str, verdict: float) -> None:
    assert MathVerifier("answer")({"answer": gold}, rf"\boxed{{{boxed}}}") == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (r"\boxed{7}\boxed{7}", 1.0),
        (r"\boxed{6} and \boxed{7}", 0.0),
        (r"\boxed{6}, no: \boxed{7}", 1.0),
        ("\\boxed{\u2212\u22127}", 0.0),
    ],
)
def test_an_integer_among_several_is_no_answer(text: str, verdict: float) -> None:
    assert IntegerVerifier("answer")({"answer": 7}, text) == verdict
