"""Which prompts are worth drawing first: an optional weight across prompts, in place of the offline deck.

The prompts of a batch are then drawn without replacement with probabilities proportional to the weights: the
largest of log w + Gumbel, the same Plackett-Luce law as within a prompt (docs/sampling.md). No weight is ever below
a tenth of the largest, so that no prompt is starved. The randomness of a prompt is a hash of the batch and its id.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, Literal

import numpy as np

from services.buffer.index import Prompts

Priority = Literal["none", "spread", "recency"]
_Floats = np.ndarray[Any, np.dtype[np.float64]]
_UInt64s = np.ndarray[Any, np.dtype[np.uint64]]

_LEAST: Final = 0.1
_HALF_LIVES: Final = 4  # within the staleness limit


def prompt_weights(prompts: Prompts, priority: Priority, *, newest: int, max_staleness: int) -> _Floats:
    """Return a weight in [0.1, 1] for each prompt.

    spread: by the standard deviation of its stored rewards, relative to the largest: a prompt whose answers are all
    equally good teaches nothing. recency: halved each D/4 versions that its newest trajectory is old.
    """
    if priority == "spread":
        spread = prompts["spread"].astype(np.float64)
        value = spread / max(float(spread.max(initial=0.0)), 1e-12)
    else:
        age = np.maximum(newest - prompts["newest"].astype(np.float64), 0.0)
        value = np.exp2(-age * _HALF_LIVES / max_staleness)
    weights: _Floats = _LEAST + (1 - _LEAST) * value
    return weights


class PriorityOrder:
    """The ready prompts in the order that one batch draws them.

    Args:
        key: 64 bits that belong to the run and the batch.
        most: prompts that will be asked for at most, those passed over too.
    """

    def __init__(self, prompts: Prompts, weights: _Floats, key: int, most: int) -> None:
        keys = np.log(weights) - np.log(-np.log(_uniform(prompts["prompt_id"], key)))
        first = np.argpartition(-keys, most - 1)[:most] if most < len(keys) else np.arange(len(keys))
        first = first[np.argsort(-keys[first])]
        self._order = list(zip(prompts["prompt_id"][first].tolist(), weights[first].tolist(), strict=True))
        self._weights = dict(zip(prompts["prompt_id"].tolist(), weights.tolist(), strict=True))
        self._total = float(weights.sum())

    def next(self, taken: Collection[int]) -> tuple[int, float] | None:
        """Return the first prompt that is not taken, and the log-probability of its draw; None if all are."""
        for prompt_id, weight in self._order:
            if prompt_id not in taken:
                left = self._total - sum(self._weights.get(x, 0.0) for x in taken)
                return prompt_id, float(np.log(weight / max(left, weight)))
        return None


def _uniform(prompt_ids: Prompts, key: int) -> _Floats:
    """Return a number in (0, 1) for each prompt: splitmix64, whose output is uniform for distinct inputs."""
    with np.errstate(over="ignore"):
        mixed: _UInt64s = prompt_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    uniform: _Floats = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    return uniform
