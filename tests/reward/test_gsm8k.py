"""On 1,000 problems of GSM8K the rule last_number agrees with the gold answers, and math with last_number."""

from __future__ import annotations

import pytest

from services.reward.verifier_rules import last_number
from tests.bench.gsm8k import SAMPLE, Reading, compare, gold, solutions

SOLUTIONS = solutions([SAMPLE])
samples = pytest.mark.parametrize(
    "sample", [SOLUTIONS[::10], pytest.param(SOLUTIONS, marks=pytest.mark.integration)], ids=["a tenth", "all"]
)


def test_last_number_finds_the_gold_answer_in_every_solution() -> None:
    assert len(SOLUTIONS) == 1_000
    assert [s for s in SOLUTIONS if last_number(s) != float(gold(s).replace(",", ""))] == []


@samples
def test_both_rules_find_every_solution_right(sample: list[str]) -> None:
    assert [c for c in compare(sample, "solution") if not (c.last_number and c.math)] == []


@samples
@pytest.mark.parametrize("reading", ["without its last line", "of another problem"])
def test_the_rules_agree_on_ninety_nine_in_a_hundred_texts(sample: list[str], reading: Reading) -> None:
    comparisons = compare(sample, reading)
    assert sum(c.last_number == c.math for c in comparisons) >= 0.99 * len(comparisons)
