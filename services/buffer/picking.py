"""Drawing trajectories within prompts: step 8 of the sampling law, for all groups of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ids = np.ndarray[Any, np.dtype[np.int64]]
Indices = np.ndarray[Any, np.dtype[np.intp]]


@dataclass(frozen=True, slots=True, eq=False)
class Picks:
    """K positions in a prompt's rows, in the order drawn, with what corrects for their probability.

    `kappa` is the (K+1)-th largest key: with q_i = 1 - exp(-exp(w_i - kappa)), sum f_i p_i / q_i over the group is
    unbiased for sum p_i f_i over the prompt (Kool et al. 2019). It is -inf when everything was drawn.
    """

    positions: Indices  # [K]
    draw_logprobs: Floats  # [K] given the draws before
    marginal_logprobs: Floats  # [K] of a single draw
    kappa: float
    log_normalizer: float  # logsumexp of all weights


def pick(rng: np.random.Generator, log_weights: Floats, ids: Ids, count: int) -> Picks:
    """Draw `count` of n positions with probability proportional to exp(log_weights)."""
    return pick_groups(rng, [log_weights], [ids], count)[0]


def pick_groups(
    rng: np.random.Generator,
    log_weights: Sequence[Floats],
    ids: Sequence[Ids],
    count: int,
    *,
    all_independent: bool = False,
) -> list[Picks]:
    """Draw `count` positions of each group with probability proportional to exp(log_weights).

    n >= count: without replacement. n < count: all n once and the rest independently with replacement; or, if
    `all_independent`, all `count` so. Keys stay logarithms, so no inverse temperature over- or underflows; ties
    break by id.
    """
    sizes = np.array([len(w) for w in log_weights])
    weights = _padded(log_weights, sizes, -np.inf)  # [groups, widest]
    keys = weights + rng.gumbel(size=weights.shape)
    order = _largest(keys, _padded(ids, sizes, 0), count + 1)  # [groups, K + 1], or fewer columns
    # Log of the weight that is left before each draw: the tail sums of the weights in the order drawn.
    drawn = np.take_along_axis(weights, order, axis=1)
    tail = np.concatenate([_log_sum_of_others(weights, order)[:, None], drawn[:, ::-1]], axis=1)
    remaining = np.logaddexp.accumulate(tail, axis=1)[:, :0:-1]
    log_normalizers = remaining[:, 0].tolist()
    picked = []
    for g, n in enumerate(sizes.tolist()):
        marginals = log_weights[g] - log_normalizers[g]
        if n < count:
            once = order[g, : 0 if all_independent else n]
            again = with_replacement(rng, marginals, count - len(once))
            positions = np.concatenate([once, again])
            before = drawn[g, : len(once)] - remaining[g, : len(once)]
            logprobs = np.concatenate([before, marginals[again]])
        else:
            positions = order[g, :count]
            logprobs = drawn[g, :count] - remaining[g, :count]
        kappa = float(keys[g, order[g, count]]) if n > count else -np.inf
        picked.append(Picks(positions, logprobs, marginals[positions], kappa, log_normalizers[g]))
    return picked


def with_replacement(rng: np.random.Generator, log_probabilities: Floats, count: int) -> Indices:
    """Draw `count` positions independently."""
    cumulative = np.cumsum(np.exp(log_probabilities))
    drawn: Indices = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    return np.minimum(drawn, len(cumulative) - 1)


def _largest(keys: Floats, ids: Ids, count: int) -> Indices:
    """Return the columns of each row's `count` largest keys, the largest first; equal ones by id."""
    if count >= keys.shape[1]:
        every: Indices = np.lexsort((ids, -keys), axis=-1)
        return every
    columns = np.argpartition(-keys, count - 1, axis=1)[:, :count]
    order = np.lexsort((np.take_along_axis(ids, columns, 1), -np.take_along_axis(keys, columns, 1)), axis=-1)
    largest: Indices = np.take_along_axis(columns, order, axis=1)
    return largest


def _log_sum_of_others(weights: Floats, columns: Indices) -> Floats:
    """Return, for each row, the log of the sum of weights outside some columns; -inf if there are none."""
    others = weights.copy()
    np.put_along_axis(others, columns, -np.inf, axis=1)
    top = others.max(axis=1)
    top[np.isneginf(top)] = 0.0
    with np.errstate(divide="ignore"):
        logs: Floats = top + np.log(np.exp(others - top[:, None]).sum(axis=1))
    return logs


def _padded(rows: Sequence[np.ndarray[Any, Any]], sizes: Indices, fill: float) -> np.ndarray[Any, Any]:
    """Return rows of different lengths as a matrix, filled up on the right."""
    matrix = np.full((len(rows), int(sizes.max(initial=1))), fill, dtype=rows[0].dtype)
    matrix[np.arange(matrix.shape[1]) < sizes[:, None]] = np.concatenate(rows)
    return matrix
