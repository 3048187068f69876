"""Stand-ins for the broker and for scorers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from services.reward.journal import Journal
from services.reward.scorer import Judgement
from tba_common.codec import encode
from tba_common.delivery import DeadLetters
from tba_common.kafka import Consumer, DeliveryError, Producer, Record
from tba_common.messages import DeadLetter, Message, Rollout, Trajectories
from tba_common.topics import retries, rollouts


@dataclass
class FakeScorer:
    """Gives each completion the length of its text; fails, or waits, when it is told to."""

    name: str = "verifier"
    version: str = "1"
    failures: list[BaseException] = field(default_factory=list)  # raised one after the other, the last for ever
    lasts: bool = True
    gate: threading.Event | None = None

    def score(self, rollout: Rollout, options: Mapping[str, Any]) -> Judgement:
        if self.gate is not None:
            assert self.gate.wait(60)
        if self.failures:
            raise self.failures[0] if self.lasts and len(self.failures) == 1 else self.failures.pop(0)
        factor = options.get("factor", 1)
        lengths = [factor * len(completion.text) for completion in rollout.completions]
        return Judgement(np.array(lengths, dtype=np.float32))


@dataclass
class FakeBroker:
    """One partition of rollouts and one of retries, and whatever was sent; delivered with `deliver` or a flush."""

    directory: Path  # of the worker's journal
    records: deque[Record] = field(default_factory=deque)
    late: deque[Record] = field(default_factory=deque)
    sent: list[tuple[str, Message, str | None]] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    late_done: list[int] = field(default_factory=list)
    works: bool = True
    is_taking: bool = True
    pending: list[Callable[[], None]] = field(default_factory=list)
    posted: int = 0

    def post(self, message: Message | bytes, *, late: bool = False) -> None:
        schema, body = ("rollout/3", message) if isinstance(message, bytes) else encode(message)
        headers = {"schema": schema.encode()}
        topic = retries("verifier") if late else rollouts("verifier")
        (self.late if late else self.records).append(Record(topic, 0, self.posted, None, body, headers))
        self.posted += 1

    def deliver(self) -> None:
        """Acknowledge what was sent so far."""
        acks, self.pending = self.pending, []
        for ack in acks:
            ack()

    @property
    def trajectories(self) -> list[Trajectories]:
        return [message for _, message, _ in self.sent if isinstance(message, Trajectories)]

    @property
    def retried(self) -> list[Rollout]:
        return [m for topic, m, _ in self.sent if isinstance(m, Rollout) and topic == retries("verifier")]

    @property
    def dead(self) -> list[DeadLetter]:
        return [message for _, message, _ in self.sent if isinstance(message, DeadLetter)]

    def consumer(self) -> Consumer:
        return cast(Consumer, _Consumer(self, self.records, self.done))

    def retry_consumer(self) -> Consumer:
        return cast(Consumer, _Consumer(self, self.late, self.late_done))

    def producer(self) -> Producer:
        return cast(Producer, _Producer(self))

    def journal(self) -> Journal:
        return Journal(self.directory, "verifier")

    def dead_letters(self) -> DeadLetters:
        return DeadLetters(self.producer(), "run", "tba-reward-verifier")


@dataclass
class _Consumer:
    broker: FakeBroker
    records: deque[Record]
    finished: list[int]

    def take(self, limit: int, timeout_seconds: float) -> list[Record]:
        return [self.records.popleft() for _ in range(min(limit, len(self.records) * self.broker.is_taking))]

    def done(self, record: Record) -> None:
        self.finished.append(record.offset)

    def stop_taking(self) -> None:
        self.broker.is_taking = False


@dataclass
class _Producer:
    broker: FakeBroker

    def send(
        self, topic: str, message: Message, *, key: str | None = None, on_delivery: Callable[[], None] | None = None
    ) -> None:
        self.broker.sent.append((topic, message, key))
        if on_delivery is not None:
            self.broker.pending.append(on_delivery)

    def flush(self, timeout_seconds: float = 30.0) -> None:
        if not self.broker.works:
            raise DeliveryError("the broker is gone")
        self.broker.deliver()
