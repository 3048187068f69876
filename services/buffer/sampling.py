"""The sampling law: which trajectories make a batch, and how probable each draw was (research/buffer.md 2).

A group comes from the online deck with probability m, uniformly over what the newest version said; else from the
offline deck, by softmax of reward over everything eligible. Trajectories of a group are drawn without replacement
as the K largest of beta*r + Gumbel, which is the Plackett-Luce law. Pure: (index, decks, batch number) fixes a draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from services.buffer.deck import Deck
from services.buffer.index import Index, Rows

Kind = Literal["online", "offline", "fallback"]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.intp]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """The numbers of the law; `seed` belongs to the run."""

    seed: int
    groups: int  # G
    trajectories: int  # K
    most_on_policy_probability: float  # m
    inverse_temperature: float  # beta of the sampler, not of the objective


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


@dataclass(frozen=True, slots=True, eq=False)
class GroupDraw:
    """K trajectories of one prompt, and why they were drawn."""

    prompt_id: int
    task_id: int
    kind: Kind
    rows: Rows  # [K], in the order drawn
    picks: Picks
    available: int  # distinct trajectories there were to draw from (n); below K some repeat

    @property
    def distinct(self) -> int:
        """How many different trajectories the group holds: fewer than K shrink the variance estimate."""
        return min(self.available, len(self.rows))


class Decks:
    """The two decks of a run."""

    def __init__(self, online: Deck, offline: Deck) -> None:
        self.online, self.offline = online, offline
        self._seen = -1

    def update(self, index: Index) -> None:
        """Make the decks hold what is ready in the index."""
        if index.changes != self._seen:
            self._seen = index.changes
            self.online.update(index.online_ready)
            self.offline.update(index.ready)

    def of(self, kind: Kind) -> Deck:
        """Return the deck that a group of this kind was dealt from."""
        return self.online if kind == "online" else self.offline


@dataclass(frozen=True, slots=True)
class Sampler:
    """The law applied to one run's index and decks."""

    index: Index
    decks: Decks
    law: Law

    def draw(self, batch_id: int) -> tuple[GroupDraw, ...]:
        """Draw the G groups of a batch.

        Raises:
            ValueError: no prompt is ready.
        """
        self.decks.update(self.index)
        rng = np.random.Generator(np.random.Philox(key=np.array([self.law.seed, batch_id], dtype=np.uint64)))
        on_policy = rng.random(self.law.groups) < self.law.most_on_policy_probability
        taken: set[int] = set()
        return tuple(self._group(rng, *_deal(self.decks, taken, wants_online=bool(online))) for online in on_policy)

    def _group(self, rng: np.random.Generator, prompt_id: int, kind: Kind) -> GroupDraw:
        rows = self.index.online(prompt_id) if kind == "online" else self.index.eligible(prompt_id)
        inverse_temperature = 0.0 if kind == "online" else self.law.inverse_temperature
        log_weights = inverse_temperature * rows["reward"].astype(np.float64)
        picks = pick(rng, log_weights, rows["trajectory_id"], self.law.trajectories)
        task_id = self.index.task_of(prompt_id)
        return GroupDraw(prompt_id, task_id, kind, rows[picks.positions], picks, len(rows))


def _deal(decks: Decks, taken: set[int], *, wants_online: bool) -> tuple[int, Kind]:
    """Choose a prompt that is not in the batch yet; a prompt comes twice only when every ready one is in it."""
    kind: Kind = "online" if wants_online else "offline"
    prompt_id = decks.of(kind).deal(taken)
    if prompt_id is None and wants_online:
        kind = "fallback"
        prompt_id = decks.offline.deal(taken)
    if prompt_id is None:
        taken.clear()
        prompt_id = decks.offline.deal(taken)
    if prompt_id is None:
        raise ValueError("a batch was drawn although no prompt is ready")
    taken.add(prompt_id)
    return prompt_id, kind


def pick(rng: np.random.Generator, log_weights: Floats, ids: Rows, count: int) -> Picks:
    """Draw `count` of n positions with probability proportional to exp(log_weights).

    n >= count: without replacement. n < count: all n once, the rest independently with replacement.
    Keys stay logarithms, so no inverse temperature over- or underflows; ties break by id.
    """
    keys = log_weights + rng.gumbel(size=len(log_weights))
    order = np.lexsort((ids, -keys))
    # Log of the weight that is left before each draw: the tail sums of the weights in the order drawn.
    remaining = np.logaddexp.accumulate(log_weights[order][::-1])[::-1]
    log_normalizer = float(remaining[0])
    marginals = log_weights - log_normalizer
    positions, draw_logprobs = order[:count], (log_weights[order] - remaining)[:count]
    if missing := count - len(positions):
        repeats = rng.choice(len(log_weights), size=missing, p=_probabilities(marginals))
        positions = np.concatenate([positions, repeats])
        draw_logprobs = np.concatenate([draw_logprobs, marginals[repeats]])
    kappa = float(keys[order[count]]) if len(order) > count else -np.inf
    return Picks(positions, draw_logprobs, marginals[positions], kappa, log_normalizer)


def _probabilities(log_probabilities: Floats) -> Floats:
    probabilities: Floats = np.exp(log_probabilities)
    probabilities /= probabilities.sum()
    return probabilities
