"""A real buffer process, killed with SIGKILL at random moments of ingest, sampling and reaping, and then the books."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy import Engine, create_engine, func, select, update

from services.buffer.ledger import Ledger, check, ledger
from services.buffer.restore import ensure_run
from services.buffer.state_tables import leases, sampler_state
from services.buffer.tables import batches, trajectories
from tests.buffer.others import Others, until
from tests.buffer.world import add_task
from tests.logins import as_role

_LONGEST_SECONDS: Final = 1.0  # that a process works before it is killed

_NUMBERS: Final = {
    "TBA_GROUPS_PER_BATCH": "2",
    "TBA_TRAJECTORIES_PER_GROUP": "4",
    "TBA_MIN_SIZE": "16",
    "TBA_CAPACITY_PER_PROMPT": "8",
    "TBA_MAX_STALENESS_VERSIONS": "8",
    "TBA_REISSUE_SECONDS": "3",
}


@dataclass(frozen=True, slots=True)
class Books:
    """What is found when all is over."""

    kills: int
    ledger: Ledger
    rows: int
    distinct_ids: int
    distinct_answers: int
    evicted: int
    faults: list[str]  # of the ledger, against every other table
    changed: list[tuple[int, int]]  # groups that came twice and were not the same
    numbers: list[int]  # of the batches that reached the learner
    batches: int


def survive(kills: int, *, url: str, servers: str, run_id: str, seed: int) -> Books:
    """Run a line whose buffer is killed `kills` times, let it end in order, and return the books.

    The database is migrated, and there are logins. The moments are drawn with `seed`; what happens in them is up to
    the machine.
    """
    moments = random.Random(seed)
    engine = create_engine(url)
    with engine.begin() as connection:
        ensure_run(connection, run_id)
        add_task(connection, run_id, train=12)
    environment = {"TBA_DATABASE_URL": as_role(url, "tba_buffer"), "TBA_KAFKA_SERVERS": servers, "TBA_RUN_ID": run_id}
    with ExitStack() as stack:
        others = Others(servers, run_id, stack, errs=True)
        for _ in range(kills):
            with _serving(environment | _NUMBERS) as process:
                until(others, partial(others.has_trained, others.trained + 1))
                _work_for(others, moments.uniform(0, _LONGEST_SECONDS))
                process.kill()
            _expire(engine)
        with _serving(environment | _NUMBERS) as process:
            until(others, partial(others.has_trained, others.trained + 4))
            process.terminate()
            assert process.wait(timeout=60) == 0
    books = _books(engine, run_id, others, kills)
    engine.dispose()
    return books


@contextmanager
def _serving(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "services.buffer", "serve"]
    process = subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _work_for(others: Others, seconds: float) -> None:
    ends = time.monotonic() + seconds
    until(others, lambda: time.monotonic() >= ends)


def _expire(engine: Engine) -> None:
    """Let the time pass that a dead holder of the lease needs to be noticed."""
    with engine.begin() as connection:
        connection.execute(update(leases).values(expires_at=func.now()))


def _books(engine: Engine, run_id: str, others: Others, kills: int) -> Books:
    with engine.connect() as connection:
        mine = trajectories.c.run_id == run_id
        counts = select(
            func.count(),
            func.count(trajectories.c.trajectory_id.distinct()),
            func.count(func.row(trajectories.c.prompt_id, trajectories.c.fingerprint).distinct()),
        )
        rows, ids, answers = connection.execute(counts.where(mine)).one()
        evicted = connection.execute(select(sampler_state.c.evicted).where(sampler_state.c.run_id == run_id))
        recorded = connection.execute(select(func.count()).where(batches.c.run_id == run_id))
        return Books(
            kills=kills,
            ledger=ledger(connection, run_id),
            rows=rows,
            distinct_ids=ids,
            distinct_answers=answers,
            evicted=evicted.scalar_one(),
            faults=check(connection, run_id),
            changed=others.changed,
            numbers=sorted({batch_id for batch_id, _ in others.groups}),
            batches=recorded.scalar_one(),
        )
