"""When a visit that failed is made again: soon, in this process; later, by the retry topic; or never. Pure.

Time is Unix time, for it travels between processes; luck is a number in [0, 1) that keeps them from asking together.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final

from tba_common.codec import BadMessage
from tba_common.messages import Retry, Rollout
from tba_common.record import Record

VISITS_HERE: Final = 4  # the first, and three more
_FIRST_WAIT_SECONDS: Final = 0.5
_LONGEST_WAIT_SECONDS: Final = 300.0  # records are held meanwhile, and the consumer's patience is longer than that


@dataclass(frozen=True, slots=True)
class Visit:
    """A rollout that is to be scored, and how often that failed."""

    record: Record
    rounds: int = 0  # times it was sent to the retry topic
    attempts: int = 0  # visits that failed, in all rounds
    attempts_here: int = 0  # of those, since this process took the record

    @property
    def failed(self) -> Visit:
        """The same after one more visit that failed."""
        return replace(self, attempts=self.attempts + 1, attempts_here=self.attempts_here + 1)


def late_visit(record: Record, now: float) -> tuple[Visit, float]:
    """Return the visit that a record of the retry topic asks for, and when to make it.

    One that cannot be read is due at once: whoever makes the visit finds out, and has a place for it.
    """
    try:
        message = record.message()
    except BadMessage:
        return Visit(record), now
    retry = message.retry if isinstance(message, Rollout) else None
    if retry is None:
        return Visit(record), now
    return Visit(record, retry.rounds, retry.attempts), min(retry.not_before, now + _LONGEST_WAIT_SECONDS)


def wait_here(visit: Visit, luck: float) -> float | None:
    """Seconds until this process makes a failed visit again: 0.5, 1, 2, each 50 to 150%. None: it had its share."""
    if visit.attempts_here >= VISITS_HERE:
        return None
    return _FIRST_WAIT_SECONDS * 2.0 ** (visit.attempts_here - 1) * (0.5 + luck)


def next_round(visit: Visit, now: float, luck: float, *, rounds: int, first_seconds: float) -> Retry | None:
    """What the retry topic gets: each of `rounds` waits twice as long as the one before. None: there was the last."""
    if visit.rounds >= rounds:
        return None
    seconds = first_seconds * 2.0**visit.rounds * (0.5 + luck)
    not_before = now + min(seconds, _LONGEST_WAIT_SECONDS)
    return Retry(rounds=visit.rounds + 1, attempts=visit.attempts, not_before=not_before)


@dataclass(slots=True)
class Waiting:
    """Visits to come, the earliest first."""

    _heap: list[tuple[float, int, Visit]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)  # visits do not compare

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, visit: Visit, due: float) -> None:
        """Keep a visit until `due`."""
        heapq.heappush(self._heap, (due, next(self._numbers), visit))

    def due(self, now: float, limit: int) -> list[Visit]:
        """Take out up to `limit` visits whose time has come."""
        visits: list[Visit] = []
        while self._heap and len(visits) < limit and self._heap[0][0] <= now:
            visits.append(heapq.heappop(self._heap)[2])
        return visits
