"""The real process on the real servers: killed at random moments, taken over, stopped in order; nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, select

from services.buffer.ledger import check, ledger
from services.buffer.migrations import migrate
from services.buffer.restore import ensure_run
from services.buffer.state_tables import leases
from services.buffer.tables import runs, trajectories
from tba_cli.local import postgres
from tba_cli.local.ports import free_ports
from tests.buffer.others import Others, until
from tests.buffer.world import add_task
from tests.logins import as_role

pytestmark = pytest.mark.integration


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
        "TBA_DATABASE_URL": as_role(migrated, "tba_buffer"),
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
    assert last.wait(timeout=60) == 0
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
    active, before = holder(engine), status(engine)["epoch"]
    processes.pop(active).kill()
    standby = next(iter(processes.values()))
    until(others, partial(others.has_trained, others.trained + 4))
    until(others, lambda: status(engine)["epoch"] == before + 1)
    assert standby.poll() is None
    assert holder(engine) == standby.pid
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:  # it is at work
        assert check(connection, run_id) == []


def test_a_buffer_that_is_there_before_its_database_waits_for_it(tmp_path: Path, broker: str, stack: ExitStack) -> None:
    (port,) = free_ports(1)
    with postgres.running(tmp_path / "server", port) as url:
        migrate(url)
    environment = {"TBA_DATABASE_URL": url, "TBA_KAFKA_SERVERS": broker, "TBA_RUN_ID": "early"}
    process = subprocess.Popen(
        [sys.executable, "-m", "services.buffer", "serve"], env=os.environ | environment, stderr=subprocess.PIPE
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stderr is not None
    stack.enter_context(process.stderr)
    assert any(b"waiting for the database" in line for line in process.stderr)
    with postgres.running(tmp_path / "server", port):
        engine = create_engine(url)
        stack.callback(engine.dispose)
        deadline = time.monotonic() + 60
        while not has_holder(engine):
            assert time.monotonic() < deadline, "the buffer did not begin"
            time.sleep(0.2)
        assert holder(engine) == process.pid
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(timeout=60) == 0


def holder(engine: Engine) -> int:
    """The process that holds the lease."""
    with engine.connect() as connection:
        owner = connection.execute(select(leases.c.owner)).scalar_one()
    return int(owner.split("/")[1])


def has_holder(engine: Engine) -> bool:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(leases)).scalar_one() > 0


def status(engine: Engine) -> dict[str, Any]:
    """What the buffer last said of itself."""
    with engine.connect() as connection:
        return dict(connection.execute(select(runs.c.status)).scalar_one())
