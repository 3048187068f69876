"""The records of one transaction, sorted by what they are. One that does not decode is named, never raised."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from services.buffer.limiter import INGEST_ROWS
from tba_common import topics
from tba_common.codec import BadMessage
from tba_common.kafka import Record
from tba_common.messages import DeadLetter, Message, Resumed, Step, Trajectories, Weights

#: What the buffer reads beside the trajectories, every partition of it, from offsets in Postgres.
CONTROL: Final = (topics.STEPS, topics.WEIGHTS, topics.DEAD_LETTERS)

_RECORDS_AT_ONCE: Final = 8
_GATHER_SECONDS: Final = 0.05


class Source(Protocol):
    """Where records come from: intake.Intake."""

    @property
    def logs_lost(self) -> int: ...

    def poll(self, timeout_seconds: float, limit: int | None = None) -> list[Record]: ...

    def hold(self, holds: bool) -> None: ...


@dataclass(slots=True)
class Inbox:
    """Messages in the order they came, and where to read on."""

    arrivals: list[tuple[Record, Trajectories]] = field(default_factory=list)
    judged: list[tuple[Record, Trajectories]] = field(default_factory=list)  # gradings and re-scorings
    reports: list[Step | Resumed] = field(default_factory=list)
    weights: list[Weights] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    bad: list[tuple[Record, str]] = field(default_factory=list)
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)  # (topic, partition): the next to read
    rows: int = 0  # trajectories in `arrivals`

    @property
    def issue_ids(self) -> set[int]:
        """The orders that the messages speak of."""
        dead = {letter.issue_id for letter in self.dead_letters if letter.issue_id is not None}
        return dead | {trajectories.rollout.prompt.issue_id for _, trajectories in self.arrivals}

    def add(self, records: Iterable[Record]) -> None:
        """Decode and sort records."""
        for record in records:
            self.offsets[record.topic, record.partition] = record.offset + 1
            try:
                self._put(record, record.message())
            except BadMessage as error:
                self.bad.append((record, str(error)))

    def _put(self, record: Record, message: Message) -> None:
        match message:
            case Trajectories() if message.rollout.prompt.purpose not in ("train", "eval"):
                self.judged.append((record, message))
            case Trajectories():
                self.arrivals.append((record, message))
                self.rows += len(message.rewards)
            case Step() | Resumed():
                self.reports.append(message)
            case Weights():
                self.weights.append(message)
            case DeadLetter():
                self.dead_letters.append(message)
            case _:
                self.bad.append((record, f"{type(message).__name__} does not belong on {record.topic}"))


def gather(source: Source, clock: Callable[[], float], *, wait_seconds: float) -> Inbox:
    """Wait for a first record, then gather until there are 500 trajectories, or 50 ms have passed.

    A transaction costs the same for one row as for a hundred. What the learner reports is not kept waiting.
    """
    inbox = Inbox()
    inbox.add(source.poll(wait_seconds, _RECORDS_AT_ONCE))
    began = clock()
    while inbox.offsets and inbox.rows < INGEST_ROWS and not inbox.reports:
        left = _GATHER_SECONDS - (clock() - began)
        records = source.poll(left, _RECORDS_AT_ONCE) if left > 0 else []
        if not records:
            break
        inbox.add(records)
    return inbox
