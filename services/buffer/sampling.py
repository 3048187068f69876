"""The sampling law: which trajectories make a batch, and how probable each draw was (docs/sampling.md).

A group comes from the online deck with probability m, uniformly over what the newest version said; else from the
offline deck, by softmax of reward over everything eligible. Trajectories of a group are drawn without replacement
as the K largest of beta*r + Gumbel, which is the Plackett-Luce law. Pure: (index, decks, batch number) fixes a draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np

from services.buffer.deck import Deck
from services.buffer.index import Index, Rows
from services.buffer.picking import Picks, pick_groups
from services.buffer.priority import Priority, PriorityOrder, prompt_weights

Kind = Literal["online", "offline", "fallback"]
DeckName = Literal["online", "offline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """The numbers of the law; `seed` belongs to the run."""

    seed: int
    groups: int  # G
    trajectories: int  # K
    most_on_policy_probability: float  # m
    inverse_temperature: float  # beta of the sampler, not of the objective
    all_independent: bool = False  # law=tba: a prompt with fewer than K trajectories draws all K with replacement
    prompt_priority: Priority = "none"


@dataclass(frozen=True, slots=True, eq=False)
class GroupDraw:
    """K trajectories of one prompt, and why they were drawn."""

    prompt_id: int
    task_id: int
    kind: Kind
    rows: Rows  # [K], in the order drawn
    picks: Picks
    available: int  # distinct trajectories there were to draw from (n); below K some repeat
    prompt_logprob: float | None = None  # of the prompt, given those before it in the batch; None: dealt from a deck

    @property
    def distinct(self) -> int:
        """How many different trajectories the group holds: fewer than K shrink the variance estimate."""
        return len(set(self.rows["trajectory_id"].tolist()))


@dataclass(frozen=True, slots=True)
class DeckState:
    """How far a deck stands after a batch, as the tables remember it."""

    floor: int  # the count at which a prompt would enter
    dealt: Mapping[int, int]  # prompt_id: times dealt, of the prompts of the batch


@dataclass(frozen=True, slots=True)
class Batch:
    """The groups of a batch, and what has to be recorded with them for the next draw to go on from there."""

    version: int  # of the learner (V), as whoever drew knew it
    groups: tuple[GroupDraw, ...]
    decks: Mapping[DeckName, DeckState]


class Decks:
    """The two decks of a run."""

    def __init__(self, online: Deck, offline: Deck) -> None:
        self.online, self.offline = online, offline

    def update(self, index: Index) -> None:
        """Make the decks hold what is ready in the index."""
        touched = index.take_changes()
        self.online.update(index.online_ready, touched)
        self.offline.update(index.ready, touched)

    def after(self, groups: Iterable[GroupDraw]) -> dict[DeckName, DeckState]:
        """Return where the decks stand after these groups; counts of prompts that only entered follow the floor."""
        prompts: dict[DeckName, set[int]] = {"online": set(), "offline": set()}
        for group in groups:
            prompts["online" if group.kind == "online" else "offline"].add(group.prompt_id)
        decks: dict[DeckName, Deck] = {"online": self.online, "offline": self.offline}
        return {
            name: DeckState(deck.level(), {x: deck.count(x) for x in sorted(prompts[name])})
            for name, deck in decks.items()
        }


class Draws(Protocol):
    """What draws batches by the law: the index in memory (Sampler), or PostgreSQL itself (sql_sampler.py)."""

    def batch(self, batch_id: int) -> Batch | None:
        """Draw a batch; None when whoever draws knows of no prompt that is ready."""


@dataclass(frozen=True)
class Sampler:
    """The law applied to one run's index and decks."""

    index: Index
    decks: Decks
    law: Law

    def batch(self, batch_id: int) -> Batch:
        """Draw a batch, and say what must be recorded with it.

        Raises:
            ValueError: no prompt is ready.
        """
        groups = self.draw(batch_id)
        return Batch(self.index.version, groups, self.decks.after(groups))

    def draw(self, batch_id: int) -> tuple[GroupDraw, ...]:
        """Draw the G groups of a batch.

        Raises:
            ValueError: no prompt is ready.
        """
        law = self.law
        self.decks.update(self.index)
        rng = np.random.Generator(np.random.Philox(key=np.array([law.seed, batch_id], dtype=np.uint64)))
        dealing = Dealing(self, batch_id)
        on_policy = rng.random(law.groups) < law.most_on_policy_probability
        dealt = [dealing.next(wants_online=bool(online)) for online in on_policy]
        rows = [
            self.index.online(d.prompt_id) if d.kind == "online" else self.index.eligible(d.prompt_id) for d in dealt
        ]
        betas = [0.0 if d.kind == "online" else law.inverse_temperature for d in dealt]
        log_weights = [beta * r["reward"].astype(np.float64) for beta, r in zip(betas, rows, strict=True)]
        ids = [r["trajectory_id"] for r in rows]
        picked = pick_groups(rng, log_weights, ids, law.trajectories, all_independent=law.all_independent)
        return tuple(
            GroupDraw(d.prompt_id, self.index.task_of(d.prompt_id), d.kind, r[p.positions], p, len(r), d.prompt_logprob)
            for d, r, p in zip(dealt, rows, picked, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Dealt:
    """A prompt for the next group of a batch."""

    prompt_id: int
    kind: Kind
    prompt_logprob: float | None = None


class Dealing:
    """Chooses the prompts of one batch; one comes twice only when every ready prompt is in the batch."""

    def __init__(self, sampler: Sampler, batch_id: int) -> None:
        self._sampler, self._batch_id = sampler, batch_id
        self._taken: set[int] = set()

    def next(self, *, wants_online: bool) -> Dealt:
        """Choose a prompt that is not in the batch yet.

        Raises:
            ValueError: no prompt is ready.
        """
        dealt = self._online() if wants_online else self._offline("offline")
        dealt = dealt or self._offline("fallback" if wants_online else "offline")
        if dealt is None:
            self._taken.clear()
            dealt = self._offline("fallback" if wants_online else "offline")
        if dealt is None:
            raise ValueError("a batch was drawn although no prompt is ready")
        self._taken.add(dealt.prompt_id)
        return dealt

    def _online(self) -> Dealt | None:
        prompt_id = self._sampler.decks.online.deal(self._taken)
        return None if prompt_id is None else Dealt(prompt_id, "online")

    def _offline(self, kind: Kind) -> Dealt | None:
        if self._sampler.law.prompt_priority == "none":
            prompt_id = self._sampler.decks.offline.deal(self._taken)
            return None if prompt_id is None else Dealt(prompt_id, kind)
        chosen = self._priority_order.next(self._taken)
        return None if chosen is None else Dealt(chosen[0], kind, chosen[1])

    @cached_property
    def _priority_order(self) -> PriorityOrder:
        index, law = self._sampler.index, self._sampler.law
        prompts = index.about(list(index.ready))
        weights = prompt_weights(prompts, law.prompt_priority, newest=index.newest, max_staleness=index.max_staleness)
        key = np.random.Philox(key=np.array([law.seed, self._batch_id], dtype=np.uint64)).jumped().random_raw()
        return PriorityOrder(prompts, weights, int(key), 2 * law.groups)
