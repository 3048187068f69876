"""A rollout visits its scorers in order and becomes trajectories at the last."""

from __future__ import annotations

import math

import pytest

from services.reward.slip import destination, next_term, stamp
from tba_common.codec import BadMessage
from tba_common.messages import Rollout, Trajectories
from tests.reward.rollouts import prompt, rollout, score, term

TWO = prompt(term("verifier", 1.0, match="exact"), term("judge", 0.5))


def test_the_next_scorer_gets_its_own_term() -> None:
    assert next_term(rollout("19", of=TWO), "verifier").options == {"match": "exact"}


def test_a_scorer_whose_turn_it_is_not_refuses() -> None:
    with pytest.raises(BadMessage, match="expected judge to be next, got verifier"):
        next_term(rollout("19", of=TWO), "judge")
    with pytest.raises(BadMessage, match="expected verifier to be next, got none"):
        next_term(rollout("19", remaining=()), "verifier")


def test_a_scorer_that_the_reward_does_not_name_refuses() -> None:
    with pytest.raises(BadMessage, match="expected judge among the reward's scorers, got verifier"):
        next_term(rollout("19", remaining=("judge",)), "judge")


def test_a_rollout_without_completions_is_refused() -> None:
    with pytest.raises(BadMessage, match="at least one completion"):
        next_term(rollout(), "verifier")


def test_a_stamp_moves_a_rollout_to_the_next_scorer_s_topic() -> None:
    stamped = stamp(rollout("19", "20", of=TWO), score(1, 0))
    assert isinstance(stamped, Rollout)
    assert [(s.scorer, s.values.tolist()) for s in stamped.scores] == [("verifier", [1, 0])]
    assert stamped.remaining == ("judge",)
    assert destination(stamped) == ("tba.rollouts.judge", "3")


def test_the_last_stamp_makes_trajectories_with_the_reward_of_all_scores() -> None:
    first = stamp(rollout("19", "20", of=TWO), score(1, 0))
    assert isinstance(first, Rollout)
    last = stamp(first, score(0.5, 0.25, scorer="judge"))
    assert isinstance(last, Trajectories)
    assert last.rewards.tolist() == [1.25, 0.125]
    assert [score.scorer for score in last.rollout.scores] == ["verifier", "judge"]
    assert last.rollout.completions == first.completions
    assert destination(last) == ("tba.trajectories", "3")


def test_a_stamp_leaves_the_rollout_it_was_given_as_it_was() -> None:
    before = rollout("19", of=TWO)
    stamp(before, score(1))
    assert before == rollout("19", of=TWO)


def test_a_score_that_is_not_finite_never_goes_on() -> None:
    with pytest.raises(BadMessage, match="expected a finite number, got nan"):
        stamp(rollout("19", of=TWO), score(math.nan))
