"""The real process on the real servers: killed at random moments, taken over, stopped in order; nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, Final

import pytest
from sqlalchemy import Engine, create_engine, func, select

from services.buffer.ledger import check, ledger
from services.buffer.restore import ensure_run
from services.buffer.state_tables import leases
from services.buffer.tables import runs, trajectories
from tba_common import topics
from tba_common.kafka import Producer, Reader
from tba_common.messages import Group, Message, Prompt, Resumed, Weights
from tests.buffer.world import add_task, step
from tests.buffer.world import trajectories as answer

pytestmark = pytest.mark.integration

DEADLINE_SECONDS: Final = 90.0


class Others:
    """The generators, the scorers and the learner of a run, in one thread."""

    def __init__(self, servers: str, run_id: str, stack: ExitStack) -> None:
        self._run_id = run_id
        self._producer = stack.enter_context(closing(Producer(servers, run_id)))
        names = [topics.PROMPTS.name, topics.BATCHES.name]
        self._reader = stack.enter_context(closing(Reader(servers, run_id, names, {})))
        self.answered = 0
        self.groups: dict[tuple[int, int], list[int]] = {}  # (batch, index): trajectory ids
        self.changed: list[tuple[int, int]] = []  # groups that came twice and were not the same
        self.trained = 0
        self._say(topics.STEPS, Resumed(run_id=run_id, batch_id=0, step=0))
        self._publish()

    def turn(self) -> None:
        """Answer every order, train every batch that is complete."""
        for record in self._reader.poll(0.1):
            message = record.message()
            if isinstance(message, Prompt):
                self.answered += 1
                came = answer(message, version=self.trained // 2).model_copy(update={"run_id": self._run_id})
                self._producer.send(topics.TRAJECTORIES.name, came, key=str(message.prompt_id))
            elif isinstance(message, Group):
                self._hold(message)
        self._train()
        self._producer.flush()

    def has_trained(self, batches: int) -> bool:
        """Say whether this many batches are trained."""
        return self.trained >= batches

    def _hold(self, group: Group) -> None:
        drawn = [draw.trajectory_id for draw in group.draws]
        if self.groups.setdefault((group.batch_id, group.index), drawn) != drawn:
            self.changed.append((group.batch_id, group.index))

    def _train(self) -> None:
        while (self.trained + 1, 0) in self.groups and (self.trained + 1, 1) in self.groups:
            self.trained += 1
            self._say(topics.STEPS, step(self.trained, policy_version=self.trained // 2, checkpoint=self.trained))
            self._publish()

    def _publish(self) -> None:
        version = self.trained // 2
        self._say(
            topics.WEIGHTS,
            Weights(run_id=self._run_id, version=version, step=self.trained, uri="v", digest="d", steps_per_version=2),
        )

    def _say(self, topic: topics.Topic, message: Message) -> None:
        self._producer.send(topic.name, message.model_copy(update={"run_id": self._run_id}), key=self._run_id)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def engine(migrated: str, run_id: str, stack: ExitStack) -> Engine:
    engine = create_engine(migrated)
    stack.callback(engine.dispose)
    with engine.begin() as connection:
        ensure_run(connection, run_id)
        add_task(connection, run_id, train=12)
    return engine


@pytest.fixture
def serve(migrated: str, broker: str, run_id: str, stack: ExitStack) -> Callable[[], subprocess.Popen[bytes]]:
    """Start a buffer; whatever still runs at the end is killed."""
    environment = {
        "TBA_DATABASE_URL": migrated,
        "TBA_KAFKA_SERVERS": broker,
        "TBA_RUN_ID": run_id,
        "TBA_GROUPS_PER_BATCH": "2",
        "TBA_TRAJECTORIES_PER_GROUP": "4",
        "TBA_MIN_SIZE": "16",
        "TBA_CAPACITY_PER_PROMPT": "8",
        "TBA_REISSUE_SECONDS": "3",
    }

    def serve() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "services.buffer", "serve"]
        process = subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process

    return serve


def until(others: Others, reached: Callable[[], bool]) -> None:
    """Let the others work until something is reached."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        assert time.monotonic() < deadline, f"{others.answered} orders answered, {others.trained} batches trained"
        others.turn()


def test_a_buffer_killed_again_and_again_loses_nothing_and_repeats_nothing(
    engine: Engine, serve: Callable[[], subprocess.Popen[bytes]], broker: str, run_id: str, stack: ExitStack
) -> None:
    others = Others(broker, run_id, stack)
    for goal in (3, 6, 9):
        process = serve()
        until(others, partial(others.has_trained, goal))
        process.kill()
        process.wait()
    last = serve()
    until(others, partial(others.has_trained, 14))
    last.send_signal(signal.SIGTERM)
    assert last.wait(timeout=30) == 0
    with engine.connect() as connection:
        assert check(connection, run_id) == []
        book = ledger(connection, run_id)
        distinct = select(func.count(), func.count(trajectories.c.fingerprint.distinct()))
        stored, different = connection.execute(distinct.where(trajectories.c.run_id == run_id)).one()
    assert book.dead_lettered == book.expired == 0
    assert stored == different
    assert others.changed == []
    numbers = sorted({batch_id for batch_id, _ in others.groups})
    assert numbers == list(range(1, numbers[-1] + 1))


def test_a_standby_takes_over_from_a_dead_buffer(
    engine: Engine, serve: Callable[[], subprocess.Popen[bytes]], broker: str, run_id: str, stack: ExitStack
) -> None:
    others = Others(broker, run_id, stack)
    processes = {process.pid: process for process in (serve(), serve())}
    until(others, partial(others.has_trained, 2))
    active = holder(engine)
    processes.pop(active).kill()
    standby = next(iter(processes.values()))
    until(others, partial(others.has_trained, others.trained + 4))
    until(others, lambda: status(engine)["epoch"] == 2)
    assert standby.poll() is None
    assert holder(engine) == standby.pid
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:  # it is at work
        assert check(connection, run_id) == []


def holder(engine: Engine) -> int:
    """The process that holds the lease."""
    with engine.connect() as connection:
        owner = connection.execute(select(leases.c.owner)).scalar_one()
    return int(owner.split("/")[1])


def status(engine: Engine) -> dict[str, Any]:
    """What the buffer last said of itself."""
    with engine.connect() as connection:
        return dict(connection.execute(select(runs.c.status)).scalar_one())
