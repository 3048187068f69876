"""Between the thread that polls and those that work: what waits, what is in work, what may be committed.

Law: at most `window` records are taken and not done; polling pauses when that many wait or are in work, and goes
on at half of it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping

from tba_common.record import Record
from tba_common.watermark import Watermark


class InHand:
    """Thread-safe. The worker takes and finishes; the poller accepts, commits and forgets."""

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ValueError(f"window: expected at least 1, got {window}")
        self._window = window
        self._changed = threading.Condition()  # guards everything below
        self._waiting: deque[Record] = deque()
        self._taken: dict[tuple[int, int], Record] = {}
        self._watermark = Watermark()
        self._progress_at = time.monotonic()
        self._is_full = False
        self._draining = False
        self._failure: BaseException | None = None

    def take(self, limit: int, timeout_seconds: float) -> list[Record]:
        """Up to `limit` records, waiting for the first. Raises what `fail` was given."""
        with self._changed:
            self._changed.wait_for(self._can_answer, timeout_seconds)
            if self._failure is not None:
                raise self._failure
            room = min(limit, self._window - len(self._taken), len(self._waiting))
            records = [self._waiting.popleft() for _ in range(room)]
            if records and not self._taken:
                self._progress_at = time.monotonic()
            self._taken |= {(record.partition, record.offset): record for record in records}
            return records

    def done(self, record: Record) -> None:
        """Finish a record. One that is not in work, or no longer ours, changes nothing."""
        place = (record.partition, record.offset)
        with self._changed:
            # By identity: after a broker lost its log, another record may carry the same offset.
            if self._taken.get(place) is record:
                del self._taken[place]
                self._watermark.done(*place)
                self._progress_at = time.monotonic()
                self._changed.notify_all()

    def drain(self) -> None:
        """Give back what waits and let nothing more be taken."""
        with self._changed:
            self._draining = True
            self._waiting.clear()
            self._changed.notify_all()

    def accept(self, records: Iterable[Record], run_id: str) -> None:
        """Put polled records in line, in their order; those of another run count as done at once."""
        with self._changed:
            for record in records:
                if record.offset < self._watermark.position(record.partition):
                    self._forget({record.partition})  # the client went back to the start of a shorter log
                self._watermark.deliver(record.partition, record.offset)
                if not record.belongs_to(run_id):
                    self._watermark.done(record.partition, record.offset)
                elif not self._draining:
                    self._waiting.append(record)
            self._changed.notify_all()

    def is_full(self) -> bool:
        """Whether polling should pause; with hysteresis, so that it does not flutter."""
        with self._changed:
            pending = len(self._waiting) + len(self._taken)
            if self._draining or pending >= self._window:
                self._is_full = True
            elif pending <= self._window // 2:
                self._is_full = False
            return self._is_full

    def committable(self) -> dict[int, int]:
        """See `Watermark.committable`."""
        with self._changed:
            return self._watermark.committable()

    def committed(self, offsets: Mapping[int, int]) -> None:
        """See `Watermark.committed`."""
        with self._changed:
            self._watermark.committed(offsets)

    def keep(self, partitions: Collection[int]) -> None:
        """Drop everything of all other partitions: no longer ours, or their log starts anew."""
        with self._changed:
            others = self._watermark.partitions() - set(partitions)
            if others:
                self._forget(others)

    def fail(self, failure: BaseException) -> None:
        """Let `take` raise this from now on."""
        with self._changed:
            self._failure = failure
            self._changed.notify_all()

    def seconds_without_progress(self, now: float) -> float:
        """How long nothing was finished although records are in work; `now` is time.monotonic()."""
        with self._changed:
            return now - self._progress_at if self._taken else 0.0

    def _can_answer(self) -> bool:
        if self._failure is not None or self._draining:
            return True
        return bool(self._waiting) and len(self._taken) < self._window

    def _forget(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self._watermark.lose(partition)
        self._waiting = deque(record for record in self._waiting if record.partition not in partitions)
        self._taken = {place: record for place, record in self._taken.items() if place[0] not in partitions}
        self._changed.notify_all()
