"""Statistics for the tests of the sampling law: exact Plackett-Luce, and a chi-square test without scipy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import Final, TypeVar

_Z_ONE_IN_A_MILLION: Final = 4.753

T = TypeVar("T")


def plackett_luce(weights: Sequence[float], count: int) -> dict[tuple[int, ...], float]:
    """Return the probability of every ordered draw of `count` items without replacement."""
    return {order: _probability(weights, order) for order in permutations(range(len(weights)), count)}


def _probability(weights: Sequence[float], order: Iterable[int]) -> float:
    left, probability = sum(weights), 1.0
    for item in order:
        probability *= weights[item] / left
        left -= weights[item]
    return probability


def fits(observed: Counter[T], expected: dict[T, float]) -> bool:
    """Say whether counts agree with probabilities: chi-square at alpha = 1e-6 (Wilson-Hilferty)."""
    draws = observed.total()
    assert set(observed) <= set(expected)
    statistic = sum((observed[cell] - draws * p) ** 2 / (draws * p) for cell, p in expected.items())
    degrees = len(expected) - 1
    spread = 2 / (9 * degrees)
    return statistic < degrees * (1 - spread + _Z_ONE_IN_A_MILLION * math.sqrt(spread)) ** 3
