"""Dispatch: draws batches, records them, and keeps two of them in front of the learner.

State of a batch:  recorded -> sent -> trained (a Step) -> perhaps untrained again (the learner lost it: Resumed).
A batch is recorded before it is sent, so after any crash the same batch is sent again. Numbers have no gaps.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from services.buffer import batches
from services.buffer.index import Index
from services.buffer.lease import Lease
from services.buffer.limiter import Limits, Reason, Stock, blocked
from services.buffer.orders import KnownTask
from services.buffer.pacing import Backlog, Turnaround
from services.buffer.payload_cache import PayloadCache
from services.buffer.sampling import Batch, Draws
from tba_common import metrics
from tba_common.messages import Group, Resumed, Step
from tba_common.tasks import Task
from tba_common.topics import MAX_BATCHES_IN_FLIGHT

_RECENT_BATCHES: Final = 32
_RETRY_SECONDS: Final = 1.0

#: Sends messages to the learner and returns when the broker has them.
Deliver = Callable[[Iterable[Group]], None]

log = logging.getLogger(__name__)


class Dispatcher:
    """Single-threaded. `now` is everywhere the same monotonic clock, in seconds."""

    def __init__(
        self,
        lease: Lease,
        run_id: str,
        deliver: Deliver,
        *,
        draws: Draws,
        index: Index,
        limits: Limits,
        backlog: Backlog,
        samples: int,
        resend_seconds: float,
        cache: PayloadCache,
    ) -> None:
        self._lease, self._run_id, self._deliver = lease, run_id, deliver
        self._draws, self._index = draws, index
        self._limits, self._backlog, self._cache = limits, backlog, cache
        self._turnaround = Turnaround(resend_seconds)
        self._untrained: dict[int, float | None] = {}  # batch_id, ascending: when sent, None if it has to be
        self._next_batch_id = 1
        self._first_on_log = 0  # what was sent before this batch, the broker has lost
        self._heard_at = float("-inf")  # when the learner last said anything
        self._refused_at: float | None = None  # when a draw that the index had thought possible found nothing
        self.samples = samples
        self.reason: Reason | None = "not_ready"
        self.staleness: deque[Counter[int]] = deque(maxlen=_RECENT_BATCHES)  # versions behind: trajectories
        self.kinds: deque[Counter[str]] = deque(maxlen=_RECENT_BATCHES)

    @property
    def untrained(self) -> int:
        """Batches that the learner has not reported."""
        return len(self._untrained)

    def load(self, now: float) -> None:
        """Take over the recorded batches; those that were sent get a full deadline from now."""
        with self._lease.transaction() as connection:
            recorded = batches.load_recorded(connection, self._run_id)
        self._untrained = {batch_id: now if sent else None for batch_id, sent in recorded.untrained.items()}
        self._next_batch_id = recorded.next_batch_id
        self._heard_at = now

    def reported(self, reports: Iterable[Step | Resumed], now: float) -> None:
        """Take note of what the learner trained, or lost."""
        for report in reports:
            self._heard_at = now
            self._turnaround.heard()
            sent_at = self._untrained.get(report.batch_id)
            if isinstance(report, Step) and sent_at is not None:
                self._turnaround.answered(now, now - sent_at)
            if isinstance(report, Resumed):
                # What it lost it reads again from Kafka by itself, if that is still there: then nothing is sent
                # before the deadline.
                log.info("learner resumed", extra={"batch_id": report.batch_id, "step": report.step})
                unsent = {batch_id for batch_id, sent in self._untrained.items() if sent is None}
                later = range(report.batch_id + 1, self._next_batch_id)
                if report.batch_id + 1 < self._first_on_log:
                    unsent, self._first_on_log = set(later), report.batch_id + 1
                self._untrained = {batch_id: None if batch_id in unsent else now for batch_id in later}
            self._untrained = {b: sent for b, sent in self._untrained.items() if b > report.batch_id}
            self._next_batch_id = max(self._next_batch_id, report.batch_id + 1)

    def lost(self) -> None:
        """Count what was sent as lost, because the broker lost its logs: the next turn sends it again."""
        self._untrained = dict.fromkeys(self._untrained)
        self._first_on_log = min(self._untrained, default=self._next_batch_id)

    def turn(self, now: float, *, inserts: int, trainable: int, tasks: Mapping[int, KnownTask]) -> None:
        """Send what must be sent, in order, as long as the learner has fewer than two batches in hand."""
        self._give_up_waiting(now)
        while True:
            in_flight = sum(sent is not None for sent in self._untrained.values())
            unsent = next((batch_id for batch_id, sent in self._untrained.items() if sent is None), None)
            stock = Stock(
                inserts=inserts,
                samples=self.samples,
                ready=len(self._index.ready),
                online=len(self._index.online_ready),
                stocked=len(self._index.stocked),
                trainable=trainable,
                batches_in_flight=in_flight,
            )
            self.reason = blocked(self._limits, stock)
            if self.reason is None and self._refused_at is not None and now - self._refused_at < _RETRY_SECONDS:
                self.reason = "index_ahead"
            if in_flight >= MAX_BATCHES_IN_FLIGHT or (unsent is None and self.reason is not None):
                return
            specs = {task_id: task.spec for task_id, task in tasks.items()}
            if unsent is None:
                batch_id = self._next_batch_id
                groups: list[Group] | None = self._draw(batch_id, specs, now)
            else:
                batch_id, groups = unsent, self._load(unsent, specs, now)
            if groups is None:
                return
            self._send(batch_id, groups, now)

    def _give_up_waiting(self, now: float) -> None:
        """Without a word from the learner for too long, what was sent counts as lost: the broker may forget."""
        sent_at = [sent for sent in self._untrained.values() if sent is not None]
        patience = self._turnaround.deadline_seconds()
        if sent_at and now - max(self._heard_at, *sent_at) > patience:
            log.warning("batches overdue", extra={"batches": len(sent_at), "waited_seconds": patience})
            self._untrained = dict.fromkeys(self._untrained)
            self._turnaround.lapsed()

    def _draw(self, batch_id: int, specs: Mapping[int, Task], now: float) -> list[Group] | None:
        """Draw a batch and record it; return it as it was recorded, or None where there was nothing to draw."""
        started = time.perf_counter()
        drawn = self._draws.batch(batch_id)
        metrics.BUFFER_DRAW_SECONDS.observe(time.perf_counter() - started)
        if drawn is None:
            self._refuse(now)
            return None
        self._refused_at = None
        with self._lease.transaction() as connection:
            batches.record(connection, self._run_id, batch_id, drawn)
            messages = batches.load_groups(connection, self._run_id, batch_id, specs, self._cache)
        self._untrained[batch_id] = None
        self._next_batch_id = max(self._next_batch_id, batch_id + 1)
        self._count(drawn)
        return messages

    def _refuse(self, now: float) -> None:
        """Wait before the next try: it asks the tables for all that is stored."""
        if self._refused_at is None:
            log.warning("the index holds prompts that the tables do not", extra={"prompts": len(self._index.ready)})
        self.reason, self._refused_at = "index_ahead", now

    def _count(self, drawn: Batch) -> None:
        self.samples += sum(len(group.rows) for group in drawn.groups)
        for group in drawn.groups:
            self._backlog.drawn(group.prompt_id)
        self.staleness.append(Counter(drawn.version - int(v) for group in drawn.groups for v in group.rows["version"]))
        self.kinds.append(Counter(group.kind for group in drawn.groups))
        metrics.BUFFER_BATCHES.inc()

    def _load(self, batch_id: int, specs: Mapping[int, Task], now: float) -> list[Group] | None:
        """Return a recorded batch; None if what it held is gone and nothing can be drawn in its place yet."""
        with self._lease.transaction() as connection:
            groups = batches.load_groups(connection, self._run_id, batch_id, specs, self._cache)
        if groups is None and self.reason is None:
            log.warning("batch drawn anew: its trajectories are gone", extra={"batch_id": batch_id})
            return self._draw(batch_id, specs, now)
        return groups

    def _send(self, batch_id: int, groups: list[Group], now: float) -> None:
        self._deliver(groups)
        with self._lease.transaction() as connection:
            batches.mark_sent(connection, self._run_id, batch_id)
        self._untrained[batch_id] = now
