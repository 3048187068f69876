"""Stand-ins for the broker, for an engine that batches continuously, and for the weights that it loads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from safetensors.numpy import save_file

from services.generator.engine import Engine, Finished, LoadError, Request, UnusablePrompt
from services.generator.weight_sync import WeightSync
from tba_common.codec import BadMessage, encode
from tba_common.delivery import DeadLetters
from tba_common.kafka import Consumer, DeliveryError, Producer, Reader, Record
from tba_common.messages import Completion, DeadLetter, Message, Rollout, Weights
from tba_common.weights import Canary, Snapshot, WeightsError, WeightStore

T = TypeVar("T")


def record(message: Message | bytes, *, offset: int = 0, topic: str = "tba.prompts") -> Record:
    """A record as the broker would deliver it; bytes make one that does not decode."""
    schema, body = ("prompt/1", message) if isinstance(message, bytes) else encode(message)
    return Record(topic, 0, offset, None, body, {"schema": schema.encode()})


@dataclass
class FakeBroker:
    """One partition of prompts, one of weights, and whatever was sent; `events` tells the order of things."""

    prompts: deque[Record] = field(default_factory=deque)
    weights: deque[Record] = field(default_factory=deque)
    sent: list[tuple[str, Message, str | None]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    delivers: bool = True
    largest_group: int = 1_000_000
    taking: bool = True
    _next_offset: int = 0

    def post(self, message: Message | bytes) -> None:
        self.prompts.append(record(message, offset=self._next_offset))
        self._next_offset += 1

    def announce(self, message: Message | bytes) -> None:
        self.weights.append(record(message, topic="tba.weights"))

    @property
    def rollouts(self) -> list[Rollout]:
        return [message for _, message, _ in self.sent if isinstance(message, Rollout)]

    @property
    def dead(self) -> list[DeadLetter]:
        return [message for _, message, _ in self.sent if isinstance(message, DeadLetter)]

    def consumer(self) -> Consumer:
        return cast(Consumer, _Consumer(self))

    def producer(self) -> Producer:
        return cast(Producer, _Producer(self))

    def reader(self) -> Reader:
        return cast(Reader, _Reader(self))

    def dead_letters(self) -> DeadLetters:
        return DeadLetters(self.producer(), "run", "tba-generator")


@dataclass
class _Consumer:
    broker: FakeBroker

    def take(self, limit: int, timeout_seconds: float) -> list[Record]:
        queue = self.broker.prompts if self.broker.taking else deque[Record]()
        return [queue.popleft() for _ in range(min(limit, len(queue)))]

    def done(self, record: Record) -> None:
        self.broker.events.append(f"done {record.offset}")
        self.broker.done.append(record.offset)

    def stop_taking(self) -> None:
        self.broker.taking = False


@dataclass
class _Producer:
    broker: FakeBroker

    def send(self, topic: str, message: Message, *, key: str | None = None) -> None:
        if isinstance(message, Rollout) and len(message.completions) > self.broker.largest_group:
            raise BadMessage("rollout/1 is too large")
        self.broker.events.append(f"send {topic}")
        self.broker.sent.append((topic, message, key))

    def flush(self, timeout_seconds: float = 30.0) -> None:
        if not self.broker.delivers:
            raise DeliveryError("the broker is gone")
        self.broker.events.append("delivered")


@dataclass
class _Reader:
    broker: FakeBroker

    def poll(self, timeout_seconds: float) -> list[Record]:
        records = list(self.broker.weights)
        self.broker.weights.clear()
        return records


class Inline(Executor):
    """Does at once what it is given."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except WeightsError as error:
            future.set_exception(error)
        return future


def weight_sync(engine: Engine, broker: FakeBroker, store: WeightStore, clock: Callable[[], float]) -> WeightSync:
    """A sync that fetches at once, on a real store."""
    return WeightSync(
        engine, broker.reader(), store, tolerance=0.05, max_versions_behind=8, fetcher=Inline(), clock=clock
    )


class BlankVersions:
    """Publishes versions in a real store whose weights are no model: the engine below loads them all the same."""

    def __init__(self, root: Path) -> None:
        self.store = WeightStore(root)

    def publish(self, version: int) -> Weights:
        def write(directory: Path) -> None:
            save_file({"weight": np.full(4, version, dtype=np.float32)}, directory / "model.safetensors")

        canary = Canary(token_ids=((2, 3, 4), (5, 6)), prompt_lengths=(1, 1), logprobs=(-1.0 - version, -2.0))
        return self.store.publish("run", version, version, write, canary=canary, steps_per_version=1)


class ContinuousEngine:
    """Keeps requests in flight until `finish` lets them go; each carries the oldest version that wrote it.

    Its canary answer is the snapshot's own, plus `gap` for the versions in `damaged`.
    """

    def __init__(self) -> None:
        self.policy_version: int | None = None
        self.running: dict[int, tuple[Request, int]] = {}
        self.finishing: list[int] = []
        self.loads: list[int] = []
        self.restored: list[int] = []
        self.damaged: set[int] = set()
        self.unloadable: set[int] = set()
        self._canary: tuple[float, ...] = ()

    def submit(self, request: Request) -> None:
        if request.text == "too long":
            raise UnusablePrompt("too long for the model")
        assert self.policy_version is not None
        self.running[request.request_id] = (request, self.policy_version)

    def finish(self) -> None:
        """Let everything that is running finish."""
        self.finishing = list(self.running)

    def collect(self, timeout_seconds: float) -> list[Finished]:
        answers = [_answer(*self.running.pop(request_id)) for request_id in self.finishing]
        self.finishing = []
        return answers

    def read(self, request: Request, answers: Sequence[str]) -> Finished:
        assert self.policy_version is not None
        return _answer(replace(request, completions=len(answers)), self.policy_version)

    def load(self, snapshot: Snapshot) -> None:
        if snapshot.version in self.unloadable:
            raise LoadError(f"version {snapshot.version} does not fit")
        self.loads.append(snapshot.version)
        self.policy_version = snapshot.version
        self._canary = snapshot.canary.logprobs

    def restore(self, snapshot: Snapshot) -> None:
        self.restored.append(snapshot.version)
        self.load(snapshot)

    def close(self) -> None:
        self.running.clear()

    def logprobs(self, sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> list[float]:
        gap = 9.0 if self.policy_version in self.damaged else 0.0
        return [value - gap for value in self._canary]


def _answer(request: Request, version: int) -> Finished:
    fields: dict[str, Any] = {"token_ids": [5, 1], "logprobs": [-1.0, -0.5], "text": "3", "finish_reason": "eos"}
    completion = Completion(**fields, policy_version=version)
    return Finished(request.request_id, (2, 3), (completion,) * request.completions)
