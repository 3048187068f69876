"""The reaper: trajectories that the index dropped leave the disk later, some at a time.

Deleting in the path of ingest would double its cost. What a recorded batch still needs stays until a checkpoint of
the learner covers that batch: until then it may have to be sent again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from sqlalchemy import text

from services.buffer.arrays import text_of
from services.buffer.lease import Lease

_EVERY_SECONDS: Final = 2.0
_LATEST_SECONDS: Final = 10.0
_AT_ONCE: Final = 1_000  # tens of milliseconds, for which a batch may have to wait
_TOO_MANY: Final = 4 * _AT_ONCE
# What is needed is looked up once, not for each row: a plan made while there were few draws would never end.
_DELETE: Final = text("""
    WITH needed AS MATERIALIZED (
        SELECT trajectory_id FROM draws WHERE run_id = :run_id AND trajectory_id = ANY(CAST(:due AS bigint[]))
            AND batch_id > (SELECT checkpoint_batch_id FROM runs WHERE run_id = :run_id)
    ), gone AS (
        DELETE FROM trajectories WHERE run_id = :run_id AND trajectory_id = ANY(CAST(:due AS bigint[]))
            AND trajectory_id NOT IN (SELECT trajectory_id FROM needed) RETURNING 1
    ), bare AS (
        DELETE FROM payloads WHERE run_id = :run_id AND trajectory_id = ANY(CAST(:due AS bigint[]))
            AND trajectory_id NOT IN (SELECT trajectory_id FROM needed)
    ), counted AS (
        UPDATE sampler_state SET evicted = evicted + (SELECT count(*) FROM gone) WHERE run_id = :run_id
    )
    SELECT trajectory_id FROM needed
""")


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

    def turn(self, now: float, *, is_busy: bool = False) -> int:
        """Delete some of what is due, every two seconds or when that many wait; return how many.

        In a turn that is busy with something else, only when it waits for long or is too much.
        """
        if now - self._reaped_at >= (_LATEST_SECONDS if is_busy else _EVERY_SECONDS):
            self._reaped_at = now
            self._queue.extend(self._needed)
            self._needed.clear()
        elif len(self._queue) < (_TOO_MANY if is_busy else _AT_ONCE):
            return 0
        due = {self._queue.popleft() for _ in range(min(_AT_ONCE, len(self._queue)))} & self._wanted
        needed = self._delete(due) if due else set()
        self._wanted -= due - needed
        self._needed |= needed
        return len(due - needed)

    def _delete(self, trajectory_ids: set[int]) -> set[int]:
        """Delete these but for those that are still needed, which are returned."""
        given = {"run_id": self._run_id, "due": text_of(trajectory_ids)}
        with self._lease.transaction() as connection:
            return set(connection.execute(_DELETE, given).scalars())
