"""A visit puts all that a scorer says on the rollout; visits in a row give the reward of the whole slip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from services.reward.grading import visit
from services.reward.scorer import Judgement, Scorer
from tba_common.codec import BadMessage
from tba_common.messages import Retry, Rollout, Trajectories
from tests.reward.fakes import FakeScorer
from tests.reward.rollouts import prompt, rollout, term


@dataclass
class Saying:
    """A scorer that says what it was told to say."""

    name: str
    judgement: Judgement
    version: str = "7"

    def score(self, rollout: Rollout, options: Mapping[str, Any]) -> Judgement:
        return self.judgement


def numbers(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, dtype=np.float32)


def test_values_details_version_and_attempts_stand_in_the_score() -> None:
    scorer = Saying("verifier", Judgement(numbers(1, 0), {"margin": numbers(0.5, -0.5)}))
    visited = visit(scorer, rollout("19", "20"), attempts=3)
    assert isinstance(visited, Trajectories)
    [score] = visited.rollout.scores
    assert (score.scorer, score.version, score.attempts, score.values.tolist()) == ("verifier", "7", 3, [1, 0])
    assert {name: values.tolist() for name, values in score.details.items()} == {"margin": [0.5, -0.5]}
    assert score.seconds >= 0


RED_TEAM = prompt(term("victim", 0.0), term("toxicity.small", 2.0), term("judge", -1.0))


def test_a_composite_of_three_scorers_is_rewarded_by_all_and_shows_each_contribution() -> None:
    scorers: list[Scorer] = [
        Saying("victim", Judgement(numbers(12, 9), responses=(("no", "yes"), ("yes", "yes")))),
        Saying("toxicity.small", Judgement(numbers(0.25, 0.75), {"success": numbers(0, 1)})),
        Saying("judge", Judgement(numbers(0.5, 1.0))),
    ]
    state: Rollout | Trajectories = rollout("a", "b", of=RED_TEAM)
    for scorer in scorers:
        assert isinstance(state, Rollout)
        state = visit(scorer, state)
    assert isinstance(state, Trajectories)
    assert state.rewards.tolist() == [0 * 12 + 2 * 0.25 - 0.5, 0 * 9 + 2 * 0.75 - 1.0]
    assert [(s.scorer, s.values.tolist()) for s in state.rollout.scores] == [
        ("victim", [12, 9]),
        ("toxicity.small", [0.25, 0.75]),
        ("judge", [0.5, 1.0]),
    ]
    assert state.rollout.responses == (("no", "yes"), ("yes", "yes"))


def test_responses_to_fewer_completions_are_refused() -> None:
    with pytest.raises(BadMessage, match="victim: responses to 1 of 2 completions"):
        visit(Saying("victim", Judgement(numbers(1, 1), responses=(("no",),))), rollout("a", "b", of=RED_TEAM))


def test_what_failed_before_is_over_once_there_is_a_score() -> None:
    late = rollout("19", of=RED_TEAM, retry=Retry(rounds=1, attempts=4, not_before=0.0))
    visited = visit(FakeScorer("victim"), late)
    assert isinstance(visited, Rollout)
    assert visited.retry is None
