"""Rewards are weighted sums of finite scores, or nothing at all."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.reward.rewards import check_score, combine
from tba_common.codec import BadMessage
from tba_common.messages import Score
from tests.reward.rollouts import score, term

FINITE = st.floats(-1_000, 1_000, width=32)


def test_a_reward_is_the_weighted_sum_of_the_scores() -> None:
    terms = [term("verifier", 2.0), term("toxicity", -0.5), term("judge", 10.0)]
    scores = [score(1, 0), score(0.25, 1, scorer="toxicity"), score(0.5, 0.75, scorer="judge")]
    assert combine(terms, scores, 2).tolist() == [2 - 0.125 + 5, -0.5 + 7.5]


def test_scores_count_by_scorer_and_not_by_order() -> None:
    terms = [term("verifier", 3.0), term("judge", 1.0)]
    scores = [score(1.0), score(0.5, scorer="judge")]
    assert combine(terms, scores, 1).tolist() == combine(terms, scores[::-1], 1).tolist() == [3.5]


@given(st.lists(FINITE, min_size=1, max_size=32))
def test_one_term_of_weight_one_is_the_score_itself(values: list[float]) -> None:
    assert combine([term()], [score(*values)], len(values)).tolist() == values


@given(st.lists(FINITE, min_size=1, max_size=8), FINITE)
def test_a_completion_s_reward_does_not_depend_on_its_neighbours(values: list[float], weight: float) -> None:
    together = combine([term(weight=weight)], [score(*values)], len(values))
    alone = [combine([term(weight=weight)], [score(value)], 1)[0] for value in values]
    assert together.tolist() == alone


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused_with_its_place(bad: float) -> None:
    with pytest.raises(BadMessage, match=rf"judge score of completion 2 of 3: expected a finite number, got {bad}"):
        check_score(score(0.0, bad, 1.0, scorer="judge"), 3)


def test_a_reward_that_overflows_is_refused() -> None:
    with pytest.raises(BadMessage, match="reward of completion 1 of 1: expected a finite number, got inf"):
        combine([term(weight=1_000.0)], [score(3e38)], 1)


def test_a_score_for_fewer_completions_is_refused() -> None:
    with pytest.raises(BadMessage, match="verifier: 2 scores for 3 completions"):
        combine([term()], [score(1, 0)], 3)


@pytest.mark.parametrize(
    ("scores", "got"),
    [
        ([], "none"),
        ([score(1.0)], "verifier"),
        ([score(1.0), score(1.0), score(1.0, scorer="judge")], "judge, verifier, verifier"),
    ],
)
def test_a_missing_or_second_score_is_refused(scores: list[Score], got: str) -> None:
    with pytest.raises(BadMessage, match=f"expected the scores of judge, verifier, got {got}$"):
        combine([term("verifier"), term("judge")], scores, 1)
