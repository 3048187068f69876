"""The reaper: trajectories that the index dropped leave the disk later, some at a time.

Deleting in the path of ingest would double its cost. What a recorded batch still needs stays until a checkpoint of
the learner covers that batch: until then it may have to be sent again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from sqlalchemy import delete, exists, select, update

from services.buffer.arrays import any_of
from services.buffer.lease import Lease
from services.buffer.state_tables import sampler_state
from services.buffer.tables import draws, payloads, runs, trajectories

_EVERY_SECONDS: Final = 2.0
_AT_ONCE: Final = 2_000


class Reaper:
    """Single-threaded. `now` is a monotonic clock, in seconds."""

    def __init__(self, lease: Lease, run_id: str, evicted: Iterable[int] = ()) -> None:
        self._lease, self._run_id = lease, run_id
        self._queue = deque(evicted)
        self._wanted = set(self._queue)
        self._needed: set[int] = set()  # could not be deleted when they were due
        self._reaped_at = float("-inf")

    def evict(self, trajectory_ids: Iterable[int]) -> None:
        """Delete these some time soon."""
        for trajectory_id in trajectory_ids:
            if trajectory_id not in self._wanted:
                self._wanted.add(trajectory_id)
                self._queue.append(trajectory_id)

    def spare(self, trajectory_ids: Iterable[int]) -> None:
        """Do not delete these: they came again and are back in the index."""
        self._wanted.difference_update(trajectory_ids)

    def turn(self, now: float) -> int:
        """Delete some of what is due, every two seconds or when that many wait; return how many."""
        if now - self._reaped_at >= _EVERY_SECONDS:
            self._reaped_at = now
            self._queue.extend(self._needed)
            self._needed.clear()
        elif len(self._queue) < _AT_ONCE:
            return 0
        due = {self._queue.popleft() for _ in range(min(_AT_ONCE, len(self._queue)))} & self._wanted
        deleted = self._delete(due) if due else set()
        self._wanted -= deleted
        self._needed |= due - deleted
        return len(deleted)

    def _delete(self, trajectory_ids: set[int]) -> set[int]:
        covered = select(runs.c.checkpoint_batch_id).where(runs.c.run_id == self._run_id).scalar_subquery()
        needed = exists().where(
            draws.c.trajectory_id == trajectories.c.trajectory_id,
            draws.c.run_id == self._run_id,
            draws.c.batch_id > covered,
        )
        mine = trajectories.c.run_id == self._run_id, trajectories.c.trajectory_id == any_of(trajectory_ids)
        gone = delete(trajectories).where(*mine, ~needed).returning(trajectories.c.trajectory_id)
        with self._lease.transaction() as connection:
            deleted = set(connection.execute(gone).scalars())
            theirs = payloads.c.run_id == self._run_id, payloads.c.trajectory_id == any_of(deleted)
            connection.execute(delete(payloads).where(*theirs))
            count = update(sampler_state).where(sampler_state.c.run_id == self._run_id)
            connection.execute(count.values(evicted=sampler_state.c.evicted + len(deleted)))
        return deleted
