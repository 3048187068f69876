"""The index: which trajectories of which prompt may be drawn now. A copy in memory of narrow Postgres rows.

It keeps steps 1 to 5 of the sampling law (research/buffer.md 2): a trajectory appears once, a prompt holds its C
newest, nothing older than D versions is eligible, and the online set is what the newest version said.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

#: One trajectory. Arrays of it are kept sorted by (version, trajectory_id): the newest last.
ROW: Final = np.dtype([("version", "<i4"), ("trajectory_id", "<i8"), ("reward", "<f4")])
Rows = np.ndarray[Any, np.dtype[np.void]]

_TOO_FEW: Final = -(1 << 31)  # the Kmin-th newest version of a prompt that has fewer trajectories


def rows_of(trajectories: Collection[tuple[int, int, float]]) -> Rows:
    """Return rows from (version, trajectory_id, reward) triples, in any order."""
    return np.array(list(trajectories), dtype=ROW)


@dataclass(slots=True)
class Shelf:
    """The trajectories of one prompt."""

    task_id: int
    rows: Rows  # [stored <= C]
    kth_version: int  # version of the Kmin-th newest row: the prompt is ready while this one is eligible


class Index:
    """Every drawable trajectory of a run, by prompt.

    Args:
        capacity: trajectories kept per prompt (C); ties in version keep the later arrival.
        fewest: eligible trajectories that make a prompt ready (Kmin).
        max_staleness: versions behind the learner at which a trajectory is still eligible (D).
        recency: width in versions of the online set (W); 1 is the newest version only.
    """

    def __init__(self, *, capacity: int, fewest: int, max_staleness: int, recency: int = 1) -> None:
        self._capacity, self._fewest = capacity, fewest
        self._max_staleness, self._recency = max_staleness, recency
        self._shelves: dict[int, Shelf] = {}
        self._active: frozenset[int] = frozenset()
        self.version = -1  # of the learner (V); none yet
        self.newest = -1  # that any eligible trajectory has (V*)
        self.size = 0
        self.stocked: set[int] = set()  # prompts that would be ready if nothing grew stale
        self.ready: set[int] = set()  # R_off
        self.online_ready: set[int] = set()  # R_on
        self.changes = 0  # grows whenever a ready set may have changed

    @property
    def oldest(self) -> int:
        """The oldest version that is not stale."""
        return self.version - self._max_staleness

    def apply(self, prompt_id: int, task_id: int, rows: Rows) -> list[int]:
        """Add trajectories of a prompt, or refresh those whose id is known; return the ids that no longer fit."""
        shelf = self._shelves.get(prompt_id)
        merged = rows
        if shelf is not None:
            known = np.isin(shelf.rows["trajectory_id"], rows["trajectory_id"])
            merged = np.concatenate([shelf.rows[~known], rows])
            self.size -= len(shelf.rows)
        merged = merged[np.lexsort((merged["trajectory_id"], merged["version"]))]
        evicted, kept = merged[: -self._capacity], merged[-self._capacity :]
        kth = int(kept["version"][-self._fewest]) if len(kept) >= self._fewest else _TOO_FEW
        self._shelves[prompt_id] = Shelf(task_id, kept, kth)
        self.size += len(kept)
        if task_id in self._active:
            self._raise_newest(int(kept["version"][-1]))
            self._reckon(prompt_id)
        return [int(i) for i in evicted["trajectory_id"]]

    def advance(self, version: int) -> None:
        """Take note of the learner's version; what is more than D behind it stops being eligible."""
        if version > self.version:
            self.version = version
            self._reckon_all()

    def activate(self, tasks: frozenset[int]) -> None:
        """Draw from these tasks only: a paused task's trajectories wait."""
        if tasks != self._active:
            self._active = tasks
            self._reckon_all()

    def task_of(self, prompt_id: int) -> int:
        """Return the task a stored prompt belongs to."""
        return self._shelves[prompt_id].task_id

    def eligible(self, prompt_id: int) -> Rows:
        """Return the trajectories of a prompt that are not stale (E_x), oldest first."""
        return self._since(prompt_id, self.oldest)

    def online(self, prompt_id: int) -> Rows:
        """Return the trajectories of a prompt that the newest version said (On_x)."""
        return self._since(prompt_id, max(self.oldest, self.newest - self._recency + 1))

    def _since(self, prompt_id: int, version: int) -> Rows:
        rows = self._shelves[prompt_id].rows
        return rows[int(np.searchsorted(rows["version"], version)) :]

    def _raise_newest(self, version: int) -> None:
        if version > self.newest and version >= self.oldest:
            self.newest = version
            self.online_ready = {x for x in self.online_ready if self._is_online(self._shelves[x])}

    def _is_online(self, shelf: Shelf) -> bool:
        return shelf.kth_version >= self.oldest and shelf.kth_version > self.newest - self._recency

    def _reckon(self, prompt_id: int) -> None:
        shelf = self._shelves[prompt_id]
        self._put(self.stocked, prompt_id, shelf.kth_version != _TOO_FEW)
        self._put(self.ready, prompt_id, shelf.kth_version >= self.oldest)
        self._put(self.online_ready, prompt_id, self._is_online(shelf))

    def _put(self, prompts: set[int], prompt_id: int, belongs: bool) -> None:
        (prompts.add if belongs else prompts.discard)(prompt_id)
        self.changes += 1

    def _reckon_all(self) -> None:
        shelves = {x: shelf for x, shelf in self._shelves.items() if shelf.task_id in self._active}
        oldest = self.oldest
        versions = (int(shelf.rows["version"][-1]) for shelf in shelves.values())
        self.newest = max((v for v in versions if v >= oldest), default=-1)
        self.stocked = {x for x, shelf in shelves.items() if shelf.kth_version != _TOO_FEW}
        self.ready = {x for x, shelf in shelves.items() if shelf.kth_version >= oldest}
        self.online_ready = {x for x in self.ready if self._is_online(shelves[x])}
        self.changes += 1
