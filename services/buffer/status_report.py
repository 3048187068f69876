"""Gathers what the buffer says of itself: about once a second as `runs.status`, and as metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from services.buffer.dispatch import Dispatcher
from services.buffer.feed import Feed
from services.buffer.index import Index
from services.buffer.lease import Lease
from services.buffer.limiter import REASONS, Limits
from services.buffer.pacing import Backlog
from services.buffer.status import PerMinute, Status, merged, save_status
from tba_common import metrics

_EVERY_SECONDS: Final = 1.0


class StatusReport:
    """Counts what happens and looks at the rest. `now` is a monotonic clock, in seconds."""

    def __init__(
        self,
        lease: Lease,
        run_id: str,
        limits: Limits,
        *,
        index: Index,
        backlog: Backlog,
        feed: Feed,
        dispatcher: Dispatcher,
    ) -> None:
        self._lease, self._run_id, self._limits = lease, run_id, limits
        self._index, self._backlog, self._feed, self._dispatcher = index, backlog, feed, dispatcher
        self.arrivals, self.steps = PerMinute(), PerMinute()
        self._outcomes: Counter[str] = Counter()
        self._said_at = float("-inf")

    def count(self, outcome: str, count: int) -> None:
        """Take note of completions that ended so."""
        self._outcomes[outcome] += count
        metrics.BUFFER_INGESTED.labels(outcome).inc(count)

    def turn(self, now: float, *, inserts: int, groups_left: Callable[[], int]) -> None:
        """Say how the buffer is, if that was not said within the last second."""
        if now - self._said_at < _EVERY_SECONDS:
            return
        self._said_at = now
        status = self._status(now, inserts, groups_left())
        with self._lease.transaction() as connection:
            save_status(connection, self._run_id, status)
            self._lease.extend(connection)
        metrics.BUFFER_ROWS.set(status.trajectories)
        metrics.BUFFER_IN_FLIGHT.set(sum(status.in_flight.values()) + status.evaluations_in_flight)
        for reason in REASONS:
            metrics.BUFFER_BLOCKED.labels(reason).set(reason == status.blocked)

    def _status(self, now: float, inserts: int, groups_left: int) -> Status:
        train = self._feed.in_flight.by_task("train")
        return Status(
            trajectories=self._index.size,
            ready_prompts=len(self._index.ready),
            online_prompts=len(self._index.online_ready),
            blocked=self._dispatcher.reason,
            credits=groups_left,
            in_flight={str(task_id): count for task_id, count in sorted(train.items())},
            evaluations_in_flight=self._feed.in_flight.by_task("eval").total(),
            undrawn_groups=self._backlog.count(self._index.ready),
            untrained_batches=self._dispatcher.untrained,
            inserts=inserts,
            samples=self._dispatcher.samples,
            staleness=merged(self._dispatcher.staleness),
            kinds=merged(self._dispatcher.kinds),
            trajectories_per_minute=self.arrivals.total(now),
            steps_per_minute=self.steps.total(now),
            redelivered=self._outcomes["redelivered"],
            epoch=self._lease.epoch,
            groups_per_batch=self._limits.groups,
            samples_per_insert=self._limits.samples_per_insert,
        )
