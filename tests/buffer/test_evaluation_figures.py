from __future__ import annotations

from itertools import combinations
from statistics import mean

import pytest

from services.buffer.evaluation_figures import pass_at


def test_without_answers_there_is_no_estimate() -> None:
    assert pass_at([]) == {}


def test_pass_at_one_is_the_share_of_right_answers() -> None:
    assert pass_at([(4, 1, 1)])[1] == 0.25


@pytest.mark.parametrize("right", range(9))
def test_it_is_the_share_of_subsets_with_a_right_answer(right: int) -> None:
    answers = [True] * right + [False] * (8 - right)
    for k, estimate in pass_at([(8, right, 1)]).items():
        assert estimate == pytest.approx(mean(any(subset) for subset in combinations(answers, k)))


def test_it_is_the_mean_over_prompts_that_have_enough_answers() -> None:
    assert pass_at([(2, 2, 3), (2, 0, 1), (1, 0, 4)]) == {1: 3 / 8, 2: 0.75}
