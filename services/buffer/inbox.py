"""The records of one poll, sorted by what they are. A record that does not decode is named, never raised."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from tba_common import topics
from tba_common.codec import BadMessage
from tba_common.kafka import Record
from tba_common.messages import DeadLetter, Resumed, Step, Trajectories, Weights

#: What the buffer reads, every partition of it, from offsets in Postgres.
TOPICS: Final = (topics.TRAJECTORIES, topics.STEPS, topics.WEIGHTS, topics.DEAD_LETTERS)


@dataclass(slots=True)
class Inbox:
    """Messages in the order they came, and where to read on."""

    arrivals: list[tuple[Record, Trajectories]] = field(default_factory=list)
    reports: list[Step | Resumed] = field(default_factory=list)
    weights: list[Weights] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    bad: list[tuple[Record, str]] = field(default_factory=list)
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)  # (topic, partition): the next to read

    @property
    def issue_ids(self) -> set[int]:
        """The orders that the messages speak of."""
        dead = {letter.issue_id for letter in self.dead_letters if letter.issue_id is not None}
        return dead | {trajectories.rollout.prompt.issue_id for _, trajectories in self.arrivals}


def sort(records: Iterable[Record]) -> Inbox:
    """Decode and sort records."""
    inbox = Inbox()
    for record in records:
        inbox.offsets[record.topic, record.partition] = record.offset + 1
        try:
            message = record.message()
        except BadMessage as error:
            inbox.bad.append((record, str(error)))
            continue
        match message:
            case Trajectories():
                inbox.arrivals.append((record, message))
            case Step() | Resumed():
                inbox.reports.append(message)
            case Weights():
                inbox.weights.append(message)
            case DeadLetter():
                inbox.dead_letters.append(message)
            case _:
                inbox.bad.append((record, f"{type(message).__name__} does not belong on {record.topic}"))
    return inbox
