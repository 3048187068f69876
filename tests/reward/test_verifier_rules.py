"""When an answer is right: tables for people, properties for the rest."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.reward.verifier_rules import Match, is_right, last_number
from tba_common.codec import BadMessage

SOLUTION = "Mia buys 3 * 4 = <<3*4=12>>12 pens.\nShe pays 12 * $103 = $<<12*103=1236>>1,236.\n#### 1,236"


@pytest.mark.parametrize("text", ["19", " 19\n", "\t19"])
def test_exact_forgives_white_space_around_the_answer(text: str) -> None:
    assert is_right(text, match="exact", reference="19")


@pytest.mark.parametrize("text", ["", "019", "19.", "1 9", "=19", "nineteen"])
def test_exact_forgives_nothing_else(text: str) -> None:
    assert not is_right(text, match="exact", reference="19")


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 198))
def test_exact_rewards_a_sum_only_for_its_own_digits(a: int, b: int, guess: int) -> None:
    assert is_right(str(guess), match="exact", reference=str(a + b)) == (guess == a + b)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18", 18.0),
        ("The answer is 18.", 18.0),
        ("She earns $18.50 a day.", 18.5),
        ("It costs $1,234,567.", 1234567.0),
        (SOLUTION, 1236.0),
        ("first 3, then 4", 4.0),
        ("below zero: -5", -5.0),
        ("below zero: \N{MINUS SIGN}5", -5.0),
        ("a debt of -$5.25", -5.25),
        ("a debt of $-5.25", -5.25),
        ("so 10-5", 5.0),
        ("so x-5", 5.0),
        ("so (2+3)-5", 5.0),
        ("plus +5", 5.0),
        (".5 of it", 0.5),
        ("about 2e3", 2000.0),
        ("3eggs", 3.0),
        ("50%", 50.0),
        ("007", 7.0),
        ("no number", None),
        ("", None),
        ("-", None),
        ("1" * 400, None),  # larger than a float
        ("1e999", None),
    ],
)
def test_last_number_reads_what_people_write(text: str, number: float | None) -> None:
    assert last_number(text) == number


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "It is {}.", "so = {:,} in all", "#### {:,}"]))
def test_last_number_reads_every_integer_back(number: int, form: str) -> None:
    assert last_number(form.format(number)) == number


@given(st.decimals(-1_000_000, 1_000_000, places=2), st.text("aeE.,:;+-$#%= \n", max_size=20))
def test_text_without_digits_around_a_number_changes_nothing(number: Decimal, text: str) -> None:
    assert last_number(f"{text} {number} {text}") == float(number)


@given(st.text("0123456789eE.,+-$x ", max_size=200))
def test_last_number_is_finite_or_none_on_any_text(text: str) -> None:
    number = last_number(text)
    assert number is None or abs(number) < float("inf")


@pytest.mark.parametrize("reference", ["1236", "1,236", "$1236.00", SOLUTION])
def test_last_number_takes_a_bare_answer_or_a_worked_solution_as_reference(reference: str) -> None:
    assert is_right("So she pays 1236 dollars.", match="last_number", reference=reference)
    assert not is_right("1236 is wrong, it is 1235", match="last_number", reference=reference)
    assert not is_right("I do not know", match="last_number", reference=reference)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("1/2", "0.5"),
        ("The answer is 0.5.", "1/2"),
        ("\\boxed{\\frac{2}{4}}", "1/2"),
        ("so $x = \\frac{1}{2}$", "\\frac{1}{2}"),
        ("$\\{2, 1\\}$", "\\{1,2\\}"),
        ("$\\sqrt{8}$", "2\\sqrt{2}"),
        ("$1 + x$", "x+1"),
        ("\\boxed{1{,}236}", "1,236"),
        ("She pays 12 * 103 = 1236.\n#### 1,236", SOLUTION),
        ("yes", "yes"),
        ("x+5", "x+5"),
    ],
)
def test_math_sees_that_two_writings_are_equal(text: str, reference: str) -> None:
    assert is_right(text, match="math", reference=reference)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("", "7"),
        ("I do not know", "7"),
        ("5", "-5"),
        ("5", "x+5"),
        ("0.4", "1/2"),
        ("$(2,1)$", "(1,2)"),
        ("$\\{1,2,3\\}$", "\\{1,2\\}"),
        ("7 is wrong\n#### 8", "7"),
    ],
)
def test_math_sees_that_two_writings_differ(text: str, reference: str) -> None:
    assert not is_right(text, match="math", reference=reference)


@pytest.mark.parametrize("match", ["exact", "last_number", "math"])
def test_an_empty_reference_is_a_fault_of_the_prompt(match: Match) -> None:
    with pytest.raises(BadMessage, match="expected an answer, got only white space"):
        is_right("", match=match, reference=" \n")


def test_a_reference_that_the_rule_cannot_read_is_a_fault_of_the_prompt() -> None:
    with pytest.raises(BadMessage, match="expected a number for match last_number, got none"):
        is_right("7", match="last_number", reference="seven")
    with pytest.raises(BadMessage, match="expected a mathematical expression for match math, got none"):
        is_right("7", match="math", reference="\\boxed{}")


@pytest.mark.parametrize("match", ["last_number", "math"])
def test_the_answer_stands_at_the_end_however_long_the_text(match: Match) -> None:
    assert is_right("7 7 " * 50_000 + "so the answer is 8", match=match, reference="8")
