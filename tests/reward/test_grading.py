"""Grading a text gives what a rollout with that text would get."""

from __future__ import annotations

import pytest

from services.reward.grading import grade
from tba_common.codec import BadMessage
from tests.reward.fakes import FakeScorer
from tests.reward.rollouts import prompt, term

BOTH = {"verifier": FakeScorer("verifier"), "judge": FakeScorer("judge", version="2")}


def test_a_text_is_graded_through_every_scorer_of_the_reward() -> None:
    graded = grade(BOTH, prompt(term("verifier", 2.0), term("judge", 0.5, factor=10)), "19")
    assert graded.rewards.tolist() == [2 * 2 + 0.5 * 20]
    assert [(s.scorer, s.version, s.values.tolist()) for s in graded.rollout.scores] == [
        ("verifier", "1", [2.0]),
        ("judge", "2", [20.0]),
    ]


def test_a_grade_belongs_to_no_policy() -> None:
    [completion] = grade(BOTH, prompt(), "19").rollout.completions
    assert (completion.policy_version, completion.text, len(completion.token_ids)) == (-1, "19", 0)


def test_a_reward_with_a_scorer_that_is_not_at_hand_is_refused() -> None:
    with pytest.raises(BadMessage, match="expected a scorer among verifier, judge, got victim"):
        grade(BOTH, prompt(term("victim")), "19")
