"""A broker in memory: the log of batches, and what the learner sent and had acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast

from tba_common.codec import encode
from tba_common.delivery import DeadLetters
from tba_common.kafka import Producer, Reader, Record
from tba_common.messages import DeadLetter, Message, Resumed, Step, Weights
from tba_common.topics import BATCHES
from tests.learner.groups import RUN

Sent = TypeVar("Sent", bound=Message)


@dataclass
class FakeBroker:
    """`log` is `tba.batches`. `look` is called with every message that is sent, before it is delivered."""

    log: list[Record] = field(default_factory=list)
    waiting: list[tuple[str, Message, str | None]] = field(default_factory=list)
    delivered: list[tuple[str, Message, str | None]] = field(default_factory=list)
    look: Callable[[Message], None] = lambda message: None

    def post(self, messages: Iterable[Message | bytes]) -> None:
        """Append to the log; bytes make a record that does not decode."""
        for message in messages:
            schema, body = ("group/1", message) if isinstance(message, bytes) else encode(message)
            self.log.append(Record(BATCHES.name, 0, len(self.log), None, body, {"schema": schema.encode()}))

    def heard(self, kind: type[Sent]) -> list[Sent]:
        """What was delivered of a kind, in order."""
        return [message for _, message, _ in self.delivered if isinstance(message, kind)]

    @property
    def announced(self) -> list[tuple[int, int]]:
        """Version and step of every announcement."""
        return [(weights.version, weights.step) for weights in self.heard(Weights)]

    @property
    def steps(self) -> list[Step]:
        return self.heard(Step)

    @property
    def resumed(self) -> list[Resumed]:
        return self.heard(Resumed)

    @property
    def dead(self) -> list[DeadLetter]:
        return self.heard(DeadLetter)

    def producer(self) -> Producer:
        return cast(Producer, _Producer(self))

    def reader(self, offsets: Mapping[tuple[str, int], int]) -> Reader:
        return cast(Reader, _Reader(self, offsets[BATCHES.name, 0]))

    def dead_letters(self) -> DeadLetters:
        return DeadLetters(self.producer(), RUN, "tba-learner")


@dataclass
class _Producer:
    broker: FakeBroker

    def send(self, topic: str, message: Message, *, key: str | None = None) -> None:
        self.broker.look(message)
        self.broker.waiting.append((topic, message, key))

    def flush(self, timeout_seconds: float = 30.0) -> None:
        self.broker.delivered += self.broker.waiting
        self.broker.waiting = []


@dataclass
class _Reader:
    broker: FakeBroker
    position: int
    logs_lost: int = 0

    def poll(self, timeout_seconds: float, limit: int | None = None) -> list[Record]:
        records = self.broker.log[self.position :]
        self.position += len(records)
        return records
