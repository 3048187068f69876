"""A run in miniature for the buffer's tests: a fake broker, tasks in the tables, and what other services would say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, Table, create_engine, func, insert, select

from services.buffer.lease import Lease
from services.buffer.ledger import Ledger, check, ledger
from services.buffer.restore import ensure_run
from services.buffer.service import Buffer
from services.buffer.settings import BufferSettings
from services.buffer.tables import prompts, tasks
from tba_common import topics
from tba_common.codec import encode
from tba_common.messages import (
    Completion,
    DeadLetter,
    Group,
    Message,
    Prompt,
    Rollout,
    Score,
    Step,
    Trajectories,
    Weights,
)
from tba_common.record import Record
from tba_common.tasks import Sampling, ScorerTerm, Task
from tests.logins import as_role

RUN: Final = "test"


def record(message: Message, topic: str, *, partition: int = 0, offset: int = 0) -> Record:
    """A message as it lies on the wire."""
    schema, body = encode(message)
    headers = {"schema": schema.encode(), "run": RUN.encode()}
    return Record(topic, partition, offset, None, body, headers)


class FakeBroker:
    """Both ends of the wire, on one list per topic; a reader starts where the tables say."""

    def __init__(self) -> None:
        self.logs: dict[str, list[Record]] = {}
        self.partitions: list[int | None] = []

    def send(self, topic: str, message: Message, *, key: str | None = None, partition: int | None = None) -> None:
        log = self.logs.setdefault(topic, [])
        log.append(record(message, topic, offset=len(log)))
        self.partitions.append(partition)

    def send_bytes(self, topic: str, schema: str, body: bytes, *, partition: int | None = None) -> None:
        log = self.logs.setdefault(topic, [])
        headers = {"schema": schema.encode(), "run": RUN.encode()}
        log.append(Record(topic, 0, len(log), None, body, headers))
        self.partitions.append(partition)

    def flush(self) -> None:
        """Everything is delivered already."""

    def sent(self, topic: topics.Topic) -> list[Message]:
        """What was ever sent to a topic."""
        return [r.message() for r in self.logs.get(topic.name, [])]

    def prompts(self) -> list[Prompt]:
        """The orders that were ever sent."""
        return [m for m in self.sent(topics.PROMPTS) if isinstance(m, Prompt)]

    def groups(self) -> list[Group]:
        """The groups that were ever sent."""
        return [m for m in self.sent(topics.BATCHES) if isinstance(m, Group)]


class FakeReader:
    """Reads a fake broker's logs from offsets."""

    def __init__(self, broker: FakeBroker, offsets: dict[tuple[str, int], int]) -> None:
        self._broker, self._next = broker, dict(offsets)
        self.logs_lost = 0
        self.holds = False

    def hold(self, holds: bool) -> None:
        """Leave trajectories on the wire, or take them again."""
        self.holds = holds

    def rewind(self) -> None:
        """Read everything again."""
        self._next = {}

    def poll(self, timeout_seconds: float, limit: int | None = None) -> list[Record]:
        found = []
        for topic in (topics.TRAJECTORIES, topics.STEPS, topics.WEIGHTS, topics.DEAD_LETTERS):
            if self.holds and topic == topics.TRAJECTORIES:
                continue
            start = self._next.get((topic.name, 0), 0)
            found += self._broker.logs.get(topic.name, [])[start:]
        found = found[:limit]
        for item in found:
            self._next[item.topic, 0] = item.offset + 1
        return found


@dataclass
class Rejected:
    """Where records at fault went."""

    reasons: list[str] = field(default_factory=list)
    fails: bool = False  # as if the broker were gone

    def handled(self) -> None:
        """Nobody counts here."""

    def reject(self, record: Record, reason: str) -> None:
        """Remember the reason."""
        if self.fails:
            raise ConnectionError("the broker is gone")
        self.reasons.append(reason)


class World:
    """A migrated database with one run, and everything around the buffer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = create_engine(url)  # the test's own
        self.role = create_engine(as_role(url, "tba_buffer"))
        self.broker, self.rejected = FakeBroker(), Rejected()
        self.lease = Lease(self.role, "buffer/test", "one")
        self.now = 1_000.0
        with self.role.begin() as connection:
            ensure_run(connection, RUN)
        assert self.lease.acquire()

    def close(self) -> None:
        """Disconnect."""
        self.engine.dispose()
        self.role.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for questions."""
        with self.engine.connect() as connection:
            yield connection

    def add_task(self, *, train: int = 4, held_out: int = 0, **fields: Any) -> int:
        """Post a task; its prompts are numbered texts."""
        with self.engine.begin() as connection:
            return add_task(connection, RUN, train=train, held_out=held_out, **fields)

    def settings(self, **changes: Any) -> BufferSettings:
        """Small numbers, so that a test needs few rows."""
        small = {
            "run_id": RUN,
            "groups_per_batch": 2,
            "trajectories_per_group": 4,
            "min_size": 4,
            "capacity_per_prompt": 8,
            "max_staleness_versions": 4,
        }
        return BufferSettings.model_validate(small | changes)

    def open(self, **changes: Any) -> Running:
        """Start the buffer; a second call is a restart from what the tables hold."""
        buffer = Buffer(self.settings(**changes), self.lease, self.broker, self.rejected, clock=lambda: self.now)
        return Running(buffer, FakeReader(self.broker, buffer.offsets))

    def announce(self, version: int, *, steps_per_version: int = 1) -> None:
        """The learner publishes a version."""
        weights = Weights(
            run_id=RUN, version=version, step=version, uri="file", digest="d", steps_per_version=steps_per_version
        )
        self.broker.send(topics.WEIGHTS.name, weights)

    def answer(self, prompt: Prompt, *, version: int | Sequence[int] = 0, **changes: Any) -> None:
        """A generator and a scorer answer an order."""
        self.broker.send(topics.TRAJECTORIES.name, trajectories(prompt, version=version, **changes))

    def answer_all(self, *, version: int = 0, start: int = 0) -> int:
        """Answer every order from the `start`-th on; return where to start next time."""
        orders = self.broker.prompts()
        for prompt in orders[start:]:
            self.answer(prompt, version=version if prompt.policy_version is None else prompt.policy_version)
        return len(orders)

    def report(self, batch_id: int, *, policy_version: int = 0, checkpoint: int = 0) -> None:
        """The learner reports a step."""
        self.broker.send(topics.STEPS.name, step(batch_id, policy_version=policy_version, checkpoint=checkpoint))

    def ledger(self, purpose: Any = "train") -> Ledger:
        """The ledger, which must balance and agree with every other source."""
        with self.reading() as connection:
            assert check(connection, RUN) == []
            return ledger(connection, RUN, purpose)

    def count(self, table: Table) -> int:
        """Rows of a table."""
        with self.reading() as connection:
            return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


@dataclass
class Running:
    """A buffer that runs, turn by turn."""

    buffer: Buffer
    reader: FakeReader

    def turns(self, count: int = 3) -> None:
        """Make some turns: what one sends, the next reads."""
        for _ in range(count):
            self.buffer.step(self.reader)


def add_task(connection: Connection, run_id: str, *, train: int, held_out: int = 0, **fields: Any) -> int:
    """Insert a task and its prompts."""
    spec = task(**fields)
    row = insert(tasks).values(run_id=run_id, name=spec.name, spec=spec.model_dump(mode="json"))
    task_id = int(connection.execute(row.returning(tasks.c.task_id)).scalar_one())
    add_prompts(connection, task_id, train, "train")
    add_prompts(connection, task_id, held_out, "eval")
    return task_id


def add_prompts(connection: Connection, task_id: int, count: int, split: str) -> None:
    """Add prompts to a task."""
    rows = [{"task_id": task_id, "split": split, "text": f"{split} {n}", "reference": str(n)} for n in range(count)]
    if rows:
        connection.execute(insert(prompts), rows)


def task(**fields: Any) -> Task:
    """A math task of four completions."""
    values: dict[str, Any] = {
        "name": "addition",
        "reward": (ScorerTerm(scorer="verifier"),),
        "sampling": Sampling(completions=4, max_new_tokens=8),
    }
    return Task.model_validate(values | fields)


def prompt(**fields: Any) -> Prompt:
    """An order that no table knows."""
    values: dict[str, Any] = {
        "run_id": RUN,
        "issue_id": 1,
        "task_id": 1,
        "prompt_id": 1,
        "text": "2+3=",
        "sampling": Sampling(completions=4),
        "reward": (ScorerTerm(scorer="verifier"),),
    }
    return Prompt.model_validate(values | fields)


def trajectories(
    order: Prompt,
    *,
    version: int | Sequence[int] = 0,
    tokens: Sequence[Sequence[int]] | None = None,
    rewards: Sequence[float] | None = None,
    prompt_tokens: Sequence[int] | None = None,
) -> Trajectories:
    """What comes back for an order; by default every completion differs from all others of the order's prompt."""
    count = order.sampling.completions
    tokens = tokens if tokens is not None else [[order.issue_id, i, 2] for i in range(count)]
    versions = [version] * len(tokens) if isinstance(version, int) else version
    completions = tuple(
        Completion(
            token_ids=np.array(ids, dtype=np.int32),
            logprobs=np.full(len(ids), -0.5 - v, dtype=np.float32),
            text=f"text {ids}",
            finish_reason="eos",
            policy_version=v,
        )
        for ids, v in zip(tokens, versions, strict=True)
    )
    values = np.array(rewards if rewards is not None else [i % 2 for i in range(len(tokens))], dtype=np.float32)
    rollout = Rollout(
        run_id=RUN,
        prompt=order,
        prompt_token_ids=np.array(prompt_tokens or [order.prompt_id, 1], dtype=np.int32),
        completions=completions,
        temperature=0.9,
        top_p=1.0,
        generator="g-0",
        scores=tuple(Score(scorer=term.scorer, version="1", values=values, seconds=0.1) for term in order.reward),
        remaining=(),
    )
    return Trajectories(run_id=RUN, rollout=rollout, rewards=values)


def step(batch_id: int, *, policy_version: int = 0, checkpoint: int = 0, loss: float = 1.0) -> Step:
    """The learner's report of the step that trained a batch."""
    return Step(
        run_id=RUN,
        step=batch_id,
        batch_id=batch_id,
        policy_version=policy_version,
        checkpoint_batch_id=checkpoint,
        loss=loss,
        reward=0.5,
        log_z=0.0,
        log_ratio=0.0,
        grad_norm=1.0,
        beta=0.05,
        learning_rate=1e-4,
        trajectories=8,
        tokens=24,
        staleness_versions={0: 8},
        step_seconds=0.1,
        wait_seconds=0.0,
    )


def dead_letter(issue_id: int | None, reason: str = "no such version") -> DeadLetter:
    """What a generator says of an order it cannot serve."""
    return DeadLetter(
        run_id=RUN,
        service="tba-generator",
        reason=reason,
        topic=topics.PROMPTS.name,
        partition=0,
        offset=0,
        schema_header="prompt/1",
        issue_id=issue_id,
        body=b"",
    )
