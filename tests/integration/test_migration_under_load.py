"""Migrations while the line writes: nothing is lost, nothing fails, and nobody waits behind a migration that waits.

The writer does what both the old and the new schema take: an order, its trajectory and the payload, in one transaction.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import NullPool, create_engine

from services.buffer import migrations
from services.buffer.migrations import migrate

pytestmark = pytest.mark.integration

_STORED: Final = 20_000  # trajectories before the migration
_DEADLINE_SECONDS: Final = 60.0

_WORLD: Final = """
    INSERT INTO runs (run_id) VALUES ('main');
    INSERT INTO tasks (run_id, name, spec) VALUES ('main', 'old', '{}');
    INSERT INTO prompts (task_id, split, text) SELECT 1, 'train', n::text FROM generate_series(1, 100) AS n;
"""
_ORDER: Final = """
    INSERT INTO issues (run_id, task_id, prompt_id, purpose, completions, partition, state, stored)
    VALUES ('main', 1, 1, 'train', 1, 0, 'settled', 1) RETURNING issue_id
"""
_TRAJECTORY: Final = """
    INSERT INTO trajectories (run_id, task_id, prompt_id, issue_id, fingerprint, policy_version, reward, tokens,
        temperature, top_p, finish_reason, scores)
    VALUES ('main', 1, 1, %s, %s, 0, 1, 384, 1, 1, 'eos', '[]') RETURNING trajectory_id
"""
_HAS_RUN: Final = "SELECT FROM information_schema.columns WHERE table_name = 'payloads' AND column_name = 'run_id'"
_CONTENTS: Final = """
    SELECT fingerprint::text, md5(token_ids)
    FROM trajectories JOIN payloads USING (trajectory_id) JOIN issues USING (issue_id)
"""


def at(url: str, revision: str) -> None:
    """Bring an empty database to an old revision."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    with psycopg.connect(driver_url(url)) as connection:
        connection.execute(_WORLD)


def driver_url(url: str) -> str:
    """SQLAlchemy's URL as the driver takes it."""
    return url.replace("+psycopg", "")


@dataclass
class Writer:
    """Somebody who stores one trajectory a transaction, and remembers what was committed and how long each took."""

    url: str
    committed: dict[str, str] = field(default_factory=dict)  # fingerprint: digest of the tokens
    seconds: list[float] = field(default_factory=list)
    gave_way: int = 0
    fault: Exception | None = None

    def work(self, stop: threading.Event) -> None:
        """Write until told to stop."""
        with psycopg.connect(driver_url(self.url), prepare_threshold=None) as connection:
            while not stop.is_set():
                began = time.monotonic()
                try:
                    self._store(connection)
                except (LockNotAvailable, DeadlockDetected):
                    connection.rollback()
                    self.gave_way += 1
                except Exception as error:
                    self.fault = error
                    return
                self.seconds.append(time.monotonic() - began)

    def _store(self, connection: psycopg.Connection[Any]) -> None:
        fingerprint, tokens = uuid.uuid4(), uuid.uuid4().bytes * 96
        [[issue_id]] = connection.execute(_ORDER)
        [[trajectory_id]] = connection.execute(_TRAJECTORY, (issue_id, fingerprint))
        row = {"trajectory_id": trajectory_id, "token_ids": tokens, "logprobs": tokens, "text": "x"}
        if connection.execute(_HAS_RUN).fetchone() is not None:
            row["run_id"] = "main"
        marks = ", ".join(["%s"] * len(row))
        connection.execute(f"INSERT INTO payloads ({', '.join(row)}) VALUES ({marks})", [*row.values()])
        connection.commit()
        self.committed[str(fingerprint)] = hashlib.md5(tokens).hexdigest()


@contextmanager
def writing(url: str, count: int) -> Iterator[list[Writer]]:
    """So many writers at work, which have begun; afterwards all of them have written on, without a fault."""
    stop, writers = threading.Event(), [Writer(url) for _ in range(count)]
    threads = [threading.Thread(target=writer.work, args=(stop,), daemon=True) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        more(writers)
        yield writers
        more(writers)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [writer.fault for writer in writers if writer.fault is not None] == []


def more(writers: list[Writer]) -> None:
    """Wait until every writer has committed some more."""
    goals = [len(writer.committed) + 5 for writer in writers]
    until(lambda: all(w.fault or len(w.committed) >= goal for w, goal in zip(writers, goals, strict=True)))


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def migrating(url: str) -> threading.Thread:
    """A migration at work."""
    thread = threading.Thread(target=migrate, args=(url,), daemon=True)
    thread.start()
    return thread


def until_dead(thread: threading.Thread) -> None:
    """Wait for a migration to end."""
    until(lambda: not thread.is_alive())


def contents(url: str) -> dict[str, str]:
    """Every trajectory with what its payload holds."""
    with psycopg.connect(driver_url(url)) as connection:
        return dict(connection.execute(_CONTENTS).fetchall())


def test_what_was_stored_before_and_during_a_migration_is_there_after_it(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    at(database, "0002")
    with psycopg.connect(driver_url(database)) as connection:
        connection.execute(
            "WITH o AS (INSERT INTO issues (run_id, task_id, prompt_id, purpose, completions, partition, state, stored)"
            " SELECT 'main', 1, n %% 100 + 1, 'train', 1, 0, 'settled', 1 FROM generate_series(1, %s) AS n"
            " RETURNING issue_id, prompt_id), t AS (INSERT INTO trajectories (run_id, task_id, prompt_id, issue_id,"
            " fingerprint, policy_version, reward, tokens, temperature, top_p, finish_reason, scores)"
            " SELECT 'main', 1, prompt_id, issue_id, gen_random_uuid(), 0, 1, 384, 1, 1, 'eos', '[]' FROM o"
            " RETURNING trajectory_id, fingerprint)"
            " INSERT INTO payloads SELECT trajectory_id, decode(repeat(md5(fingerprint::text), 96), 'hex'), '', 'x'"
            " FROM t",
            (_STORED,),
        )
    before = contents(database)
    assert len(before) == _STORED
    with writing(database, 3) as writers:
        quiet = max(max(writer.seconds) for writer in writers)
        began = time.monotonic()
        until_dead(migrating(database))
        took = time.monotonic() - began
    written = {name: digest for writer in writers for name, digest in writer.committed.items()}
    assert contents(database) == before | written
    with psycopg.connect(driver_url(database)) as connection:
        nobody = (
            "SELECT count(*) FROM trajectories LEFT JOIN payloads USING (trajectory_id) WHERE payloads.text IS NULL"
        )
        assert connection.execute(nobody).fetchone() == (0,)
    longest = max(max(writer.seconds) for writer in writers)
    with capsys.disabled():
        print(
            f"\n{_STORED} rows, 3 writers, {len(written)} transactions: migration {took:.2f} s, longest transaction"
            f" {quiet:.3f} s before it, {longest:.2f} s during it, {sum(w.gave_way for w in writers)} tried again"
        )


def test_nobody_waits_behind_a_migration_that_waits_for_a_long_reader(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    at(database, "0004")
    caplog.set_level(logging.INFO, logger="services.buffer.migrations")

    def has_given_way(times: int) -> bool:
        return sum("in use" in record.message for record in caplog.records) >= times

    with writing(database, 2) as writers, psycopg.connect(driver_url(database)) as reader:
        reader.execute("SELECT count(*) FROM trajectories")  # and its transaction stays open
        migration = migrating(database)
        for count in (1, 2, 3):
            until(partial(has_given_way, count))
            more(writers)
        assert migration.is_alive()
        reader.rollback()
        until_dead(migration)
