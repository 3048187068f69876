"""The law of rewards: r = sum over the task's terms of weight x score, per completion. Pure.

A score that is not a finite number, or that is not there, is nobody's reward: the rollout is refused, not zeroed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tba_common.codec import BadMessage
from tba_common.messages import Float32s, Score
from tba_common.tasks import ScorerTerm


def check_score(score: Score, completions: int) -> None:
    """Accept one finite value for each completion.

    Raises:
        BadMessage: another number of values, or one that is infinite or not a number.
    """
    if len(score.values) != completions:
        raise BadMessage(f"{score.scorer}: {len(score.values)} scores for {completions} completions")
    _check_finite(score.values, what=f"{score.scorer} score")


def combine(terms: Sequence[ScorerTerm], scores: Sequence[Score], completions: int) -> Float32s:
    """Return the reward of each completion, shape [completions]; summed in float64.

    Raises:
        BadMessage: the scores are not exactly one good score for each term, or a sum overflows.
    """
    by_scorer = {score.scorer: score for score in scores}
    expected, got = sorted(term.scorer for term in terms), sorted(score.scorer for score in scores)
    if expected != got:
        raise BadMessage(f"expected the scores of {', '.join(expected)}, got {', '.join(got) or 'none'}")
    rewards = np.zeros(completions, dtype=np.float64)  # [completions]
    for term in terms:
        score = by_scorer[term.scorer]
        check_score(score, completions)
        rewards += term.weight * score.values.astype(np.float64)
    with np.errstate(over="ignore"):  # an overflow is infinite, and refused as such
        combined = rewards.astype(np.float32)
    _check_finite(combined, what="reward")
    return combined


def _check_finite(values: Float32s, *, what: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        first = int(bad[0])
        raise BadMessage(
            f"{what} of completion {first + 1} of {len(values)}: expected a finite number, got {values[first]}"
        )
