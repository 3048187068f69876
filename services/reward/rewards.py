"""The law of rewards: how the scores of a completion become one number, by the task's combination. Pure.

A score that is not a finite number, or that is not there, is nobody's reward: the rollout is refused, not zeroed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tba_common.codec import BadMessage
from tba_common.messages import Completion, Float32s, Prompt, Score
from tba_common.tasks import Combination, ScorerTerm

_Float64s = np.ndarray[Any, np.dtype[np.float64]]


def check_score(score: Score, completions: int) -> None:
    """Accept one finite value for each completion, and as many finite figures of each detail.

    Raises:
        BadMessage: another number of values, or one that is infinite or not a number.
    """
    for name, values in {"score": score.values, **score.details}.items():
        if len(values) != completions:
            raise BadMessage(f"{score.scorer} {name}: {len(values)} values for {completions} completions")
        _check_finite(values, what=f"{score.scorer} {name}")


def combine(prompt: Prompt, scores: Sequence[Score], completions: Sequence[Completion]) -> Float32s:
    """Return the reward of each completion, shape [completions]: see `tba_common.tasks.Combination`.

    Computed in float64. An evaluation that is judged by its own terms carries them and the plain sum in its prompt.

    Raises:
        BadMessage: the scores are not exactly one good score for each term, or a sum overflows.
    """
    values = _in_order(prompt.reward, scores, len(completions))  # [terms, completions]
    rewards = _by_rule(prompt.combination, prompt.reward, values)
    rewards = _fixed(prompt.combination, completions, rewards)
    with np.errstate(over="ignore"):  # an overflow is infinite, and refused as such
        combined = rewards.astype(np.float32)
    _check_finite(combined, what="reward")
    return combined


def _in_order(terms: Sequence[ScorerTerm], scores: Sequence[Score], completions: int) -> Float32s:
    by_scorer = {score.scorer: score for score in scores}
    expected, got = sorted(term.scorer for term in terms), sorted(score.scorer for score in scores)
    if expected != got:
        raise BadMessage(f"expected the scores of {', '.join(expected)}, got {', '.join(got) or 'none'}")
    for score in scores:
        check_score(score, completions)
    return np.stack([by_scorer[term.scorer].values for term in terms])


def _by_rule(combination: Combination, terms: Sequence[ScorerTerm], values: Float32s) -> _Float64s:
    weights = np.array([term.weight for term in terms])  # [terms]
    match combination.rule:
        case "sum":
            return _weighted(weights, values)
        case "log_product":
            return _weighted(weights, np.log(np.maximum(values.astype(np.float64), combination.floor)))
        case "gate":
            is_gate = np.array([term.at_least is not None for term in terms])
            # In the precision of the scores: 0.7 reaches 0.7.
            bars = np.array([term.at_least for term in terms if term.at_least is not None], dtype=np.float32)
            is_open = (values[is_gate] >= bars[:, None]).all(axis=0)  # [completions]
            return np.where(is_open, _weighted(weights[~is_gate], values[~is_gate]), combination.closed_reward)


def _weighted(weights: _Float64s, values: Float32s | _Float64s) -> _Float64s:
    """The sum over terms, one after the other: a completion's reward must not depend on its neighbours."""
    total = np.zeros(values.shape[1])
    for weight, value in zip(weights, values, strict=True):
        total += weight * value.astype(np.float64)
    return total


def _fixed(combination: Combination, completions: Sequence[Completion], rewards: _Float64s) -> _Float64s:
    """Put in the rewards that do not depend on scores; one that is both short and cut off counts as short."""
    if combination.non_eos_reward is not None:
        is_cut = np.array([completion.finish_reason != "eos" for completion in completions])
        rewards = np.where(is_cut, combination.non_eos_reward, rewards)
    # A text that was given and not sampled has no tokens, and nobody knows its length.
    lengths = np.array([len(completion.token_ids) for completion in completions])
    is_short = (lengths > 0) & (lengths < combination.min_tokens)
    return np.where(is_short, combination.short_reward, rewards)


def _check_finite(values: Float32s, *, what: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        first = int(bad[0])
        raise BadMessage(
            f"{what} of completion {first + 1} of {len(values)}: expected a finite number, got {values[first]}"
        )
