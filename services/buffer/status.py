"""What the buffer says of itself, about once a second, for the API and for people."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import Connection, func, update

from services.buffer.limiter import Reason
from services.buffer.tables import runs

_MINUTE: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """`runs.status`. Groups are orders of one prompt; staleness is of what was drawn lately, in versions."""

    trajectories: int  # in the index
    ready_prompts: int
    online_prompts: int  # ready with what the newest version said
    blocked: Reason | None  # why no batch can be drawn
    credits: int  # groups that may still be ordered
    in_flight: Mapping[str, int]  # orders for training, by task id
    evaluations_in_flight: int
    undrawn_groups: int
    untrained_batches: int
    inserts: int
    samples: int
    staleness: Mapping[str, int]
    kinds: Mapping[str, int]  # online, offline, fallback: groups drawn lately
    trajectories_per_minute: int
    steps_per_minute: int
    redelivered: int  # orders that were answered twice, since the start
    epoch: int  # of the lease
    groups_per_batch: int
    samples_per_insert: float


def save_status(connection: Connection, run_id: str, status: Status) -> None:
    """Write what the buffer says of itself."""
    said = {"status": asdict(status), "status_at": func.now()}
    connection.execute(update(runs).where(runs.c.run_id == run_id).values(said))


class PerMinute:
    """How much happened in the last minute. `now` is a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._events: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, now: float, count: int) -> None:
        """Take note of `count` more."""
        if count:
            self._events.append((now, count))
            self._sum += count

    def total(self, now: float) -> int:
        """Return the sum over the last minute."""
        while self._events and self._events[0][0] < now - _MINUTE:
            self._sum -= self._events.popleft()[1]
        return self._sum


def merged(counters: Iterable[Counter[Any]]) -> dict[str, int]:
    """Add counters up, with keys in order, as JSON wants them."""
    total = sum(counters, Counter[Any]())
    return {str(key): total[key] for key in sorted(total)}
