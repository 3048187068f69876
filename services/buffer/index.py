"""The index: which trajectories of which prompt may be drawn now. A copy in memory of narrow Postgres rows.

It keeps steps 1 to 5 of the sampling law (docs/sampling.md): a trajectory appears once, a prompt holds its C newest,
nothing older than D versions is eligible, and the online set is what the newest version said. What each prompt
comes to is one row of `Prompts`, so that a new version of the learner is one comparison over arrays.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np

#: One trajectory. Arrays of it are kept sorted by (version, trajectory_id): the newest last.
ROW: Final = np.dtype([("version", "<i4"), ("trajectory_id", "<i8"), ("reward", "<f4")])
Rows = np.ndarray[Any, np.dtype[np.void]]

#: What the index knows of a prompt. `kth` is the version of its Kmin-th newest row: ready while that is eligible.
PROMPT: Final = np.dtype(
    [("prompt_id", "<i8"), ("task_id", "<i8"), ("kth", "<i4"), ("newest", "<i4"), ("spread", "<f4"), ("active", "?")]
)
Prompts = np.ndarray[Any, np.dtype[np.void]]
Ids = np.ndarray[Any, np.dtype[np.int64]]

_TOO_FEW: Final = -(1 << 31)  # the Kmin-th newest version of a prompt that has fewer trajectories


def rows_of(trajectories: Collection[tuple[int, int, float]]) -> Rows:
    """Return rows from (version, trajectory_id, reward) triples, in any order."""
    rows: Rows = np.empty(len(trajectories), dtype=ROW)
    if trajectories:
        rows["version"], rows["trajectory_id"], rows["reward"] = zip(*trajectories, strict=True)
    return rows


class Index:
    """Every drawable trajectory of a run, by prompt.

    Args:
        capacity: trajectories kept per prompt (C); ties in version keep the later arrival.
        fewest: eligible trajectories that make a prompt ready (Kmin).
        max_staleness: versions behind the learner at which a trajectory is still eligible (D).
        recency: width in versions of the online set (W); 1 is the newest version only.
    """

    def __init__(self, *, capacity: int, fewest: int, max_staleness: int, recency: int = 1) -> None:
        self.capacity, self._fewest = capacity, fewest
        self.max_staleness, self._recency = max_staleness, recency
        self._rows: list[Rows] = []  # by place; each [stored <= C]
        self._place: dict[int, int] = {}  # of a prompt, in `_rows` and `_prompts`
        self._prompts: Prompts = np.zeros(64, dtype=PROMPT)
        self._active: frozenset[int] = frozenset()
        self.version = -1  # of the learner (V); none yet
        self.newest = -1  # that any eligible trajectory has (V*)
        self.size = 0
        self._last_id = -1  # the greatest of a trajectory
        self._touched: set[int] = set()  # prompts that came or went since `take_changes`
        self.stocked: set[int] = set()  # prompts that would be ready if nothing grew stale
        self.ready: set[int] = set()  # R_off
        self.online_ready: set[int] = set()  # R_on

    @property
    def oldest(self) -> int:
        """The oldest version that is not stale."""
        return self.version - self.max_staleness

    def apply(self, prompt_id: int, task_id: int, rows: Rows) -> list[int]:
        """Add trajectories of a prompt, or refresh those whose id is known; return the ids that no longer fit."""
        place = self._place.get(prompt_id)
        merged = rows
        if place is not None:
            stored = self._rows[place]
            self.size -= len(stored)
            if rows["trajectory_id"].min() <= self._last_id:  # else all are new, which is cheaper to know than to find
                stored = stored[~np.isin(stored["trajectory_id"], rows["trajectory_id"])]
            merged = np.concatenate([stored, rows])
        merged = merged[np.lexsort((merged["trajectory_id"], merged["version"]))]
        evicted, kept = merged[: -self.capacity], merged[-self.capacity :]
        place = self._shelve(prompt_id, task_id, kept, place)
        if task_id in self._active:
            self._raise_newest(int(kept["version"][-1]))
            self._reckon(prompt_id, place)
        self._last_id = max(self._last_id, int(rows["trajectory_id"].max()))
        evicted_ids: list[int] = evicted["trajectory_id"].tolist()
        return evicted_ids

    def load(self, rows: Rows, prompt_ids: Ids, task_ids: Ids, starts: Ids) -> None:
        """Take over all that is stored, at a start; nothing is active yet.

        Args:
            rows: of all prompts, one prompt after the other, each one's sorted and at most C.
            prompt_ids: [prompts]
            task_ids: [prompts]
            starts: [prompts] where each prompt's rows begin.
        """
        counts = np.diff(starts, append=len(rows))
        ends = starts + counts
        known: Prompts = np.zeros(max(64, len(starts)), dtype=PROMPT)
        mine = known[: len(starts)]
        mine["prompt_id"], mine["task_id"], mine["newest"] = prompt_ids, task_ids, rows["version"][ends - 1]
        mine["kth"] = np.where(counts < self._fewest, _TOO_FEW, rows["version"][np.maximum(ends - self._fewest, 0)])
        mine["spread"] = _spreads(rows["reward"].astype(np.float64), starts, counts)
        self._prompts, self._rows, self.size = known, np.split(rows, starts[1:]), len(rows)
        self._place = {x: place for place, x in enumerate(prompt_ids.tolist())}
        self._last_id = int(rows["trajectory_id"].max(initial=-1))

    def advance(self, version: int) -> None:
        """Take note of the learner's version; what is more than D behind it stops being eligible."""
        if version > self.version:
            self.version = version
            self._reckon_all()

    def activate(self, tasks: frozenset[int]) -> None:
        """Draw from these tasks only: a paused task's trajectories wait."""
        if tasks != self._active:
            self._active = tasks
            self._prompts["active"] = np.isin(self._prompts["task_id"], list(tasks))
            self._reckon_all()

    def take_changes(self) -> set[int]:
        """Return the prompts that may have come into a ready set, or left one, since the last call."""
        touched, self._touched = self._touched, set()
        return touched

    def about(self, prompts: Sequence[int]) -> Prompts:
        """Return what is known of some prompts, in their order."""
        places = np.fromiter((self._place[x] for x in prompts), dtype=np.intp, count=len(prompts))
        found: Prompts = self._prompts[places]
        return found

    def task_of(self, prompt_id: int) -> int:
        """Return the task a stored prompt belongs to."""
        return int(self._prompts["task_id"][self._place[prompt_id]])

    def eligible(self, prompt_id: int) -> Rows:
        """Return the trajectories of a prompt that are not stale (E_x), oldest first."""
        return self._since(prompt_id, self.oldest)

    def online(self, prompt_id: int) -> Rows:
        """Return the trajectories of a prompt that the newest version said (On_x)."""
        return self._since(prompt_id, self._oldest_online)

    @property
    def _oldest_online(self) -> int:
        return max(self.oldest, self.newest - self._recency + 1)

    def _since(self, prompt_id: int, version: int) -> Rows:
        rows = self._rows[self._place[prompt_id]]
        return rows[int(np.searchsorted(rows["version"], version)) :]

    def _shelve(self, prompt_id: int, task_id: int, kept: Rows, place: int | None) -> int:
        if place is None:
            place = self._place[prompt_id] = len(self._rows)
            self._rows.append(kept)
            if place == len(self._prompts):
                self._prompts = np.resize(self._prompts, 2 * place)
        self._rows[place] = kept
        kth = kept["version"][-self._fewest] if len(kept) >= self._fewest else _TOO_FEW
        rewards = kept["reward"].astype(np.float64)
        away = rewards - rewards.sum() / len(rewards)
        spread = float(away @ away / len(rewards)) ** 0.5  # what std() does, at a fifth of its price
        self._prompts[place] = (prompt_id, task_id, kth, kept["version"][-1], spread, task_id in self._active)
        self.size += len(kept)
        return place

    def _raise_newest(self, version: int) -> None:
        if version > self.newest and version >= self.oldest:
            self.newest = version
            online = list(self.online_ready)
            self._replace(self.online_ready, _at_least(self.about(online), self._oldest_online))

    def _reckon(self, prompt_id: int, place: int) -> None:
        kth = int(self._prompts["kth"][place])
        for prompts, oldest in self._cuts():
            (prompts.add if kth >= oldest else prompts.discard)(prompt_id)
        self._touched.add(prompt_id)

    def _reckon_all(self) -> None:
        known = self._prompts[: len(self._rows)]
        known = known[known["active"]]
        self.newest = int(known["newest"][known["newest"] >= self.oldest].max(initial=-1))
        for prompts, oldest in self._cuts():
            self._replace(prompts, _at_least(known, oldest))

    def _cuts(self) -> tuple[tuple[set[int], int], ...]:
        """The sets of prompts, and the version that the Kmin-th newest row must have to belong."""
        return (self.stocked, _TOO_FEW + 1), (self.ready, self.oldest), (self.online_ready, self._oldest_online)

    def _replace(self, prompts: set[int], new: set[int]) -> None:
        self._touched |= prompts ^ new
        prompts.clear()
        prompts.update(new)


def _at_least(known: Prompts, oldest: int) -> set[int]:
    return set(known["prompt_id"][known["kth"] >= oldest].tolist())


def _spreads(rewards: np.ndarray[Any, np.dtype[np.float64]], starts: Ids, counts: Ids) -> Any:
    """Return the standard deviation of each prompt's rewards."""
    if len(starts) == 0:
        return rewards
    means = np.add.reduceat(rewards, starts) / counts
    return np.sqrt(np.add.reduceat((rewards - np.repeat(means, counts)) ** 2, starts) / counts)
