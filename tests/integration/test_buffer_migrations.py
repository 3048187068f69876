"""The migrated schema is the schema of tables.py, however many processes migrate at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, text

from services.buffer.migrations import SchemaError, migrate, require_head
from services.buffer.schema import metadata

pytestmark = pytest.mark.integration


Connect = Callable[[str], Engine]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Opens engines that are closed with the test."""
    with ExitStack() as stack:

        def connect(url: str) -> Engine:
            engine = create_engine(url)
            stack.callback(engine.dispose)
            return engine

        yield connect


def checks_and_defaults(engine: Engine) -> dict[str, Any]:
    """What alembic's comparison leaves out."""
    looking = inspect(engine)
    return {
        table: (
            sorted((c["name"], c["sqltext"]) for c in looking.get_check_constraints(table)),
            sorted((c["name"], str(c["type"]), str(c["default"]), c["nullable"]) for c in looking.get_columns(table)),
            sorted(str(index) for index in looking.get_indexes(table)),
            sorted(str(key) for key in looking.get_foreign_keys(table)),
            looking.get_pk_constraint(table)["name"],
        )
        for table in metadata.tables
    }


def test_the_migrated_schema_is_that_of_the_tables(connect: Connect, migrated: str, database: str) -> None:
    by_migration, by_metadata = connect(migrated), connect(database)
    metadata.create_all(by_metadata)
    with by_migration.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    assert checks_and_defaults(by_migration) == checks_and_defaults(by_metadata)


def test_migrations_that_race_wait_for_one_another(connect: Connect, database: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(migrate, [database] * 3))
    engine = connect(database)
    require_head(engine)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar_one() == 1


def test_a_database_without_the_schema_is_refused_with_the_remedy(connect: Connect, database: str) -> None:
    engine = connect(database)
    with pytest.raises(SchemaError, match=r"at no revision, this program needs \d+: run `python -m services.buffer mi"):
        require_head(engine)


def test_payloads_stay_in_their_rows_uncompressed(connect: Connect, migrated: str) -> None:
    engine = connect(migrated)
    query = "SELECT attstorage::text FROM pg_attribute WHERE attrelid = 'payloads'::regclass AND attname = 'token_ids'"
    with engine.connect() as connection:
        assert connection.execute(text(query)).scalar_one() == "e"


def test_serve_says_in_one_sentence_that_the_schema_is_missing(database: str) -> None:
    command = [sys.executable, "-m", "services.buffer", "serve"]
    done = subprocess.run(command, env={"TBA_DATABASE_URL": database}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("run `python -m services.buffer migrate`")
    assert "Traceback" not in done.stderr


def test_the_migrate_command_brings_a_database_to_the_newest_revision(connect: Connect, database: str) -> None:
    command = [sys.executable, "-m", "services.buffer", "migrate"]
    subprocess.run(command, env={"TBA_DATABASE_URL": database}, check=True, capture_output=True, timeout=120)
    engine = connect(database)
    require_head(engine)


def test_a_program_runs_on_the_schema_of_a_newer_one_and_leaves_it_alone(connect: Connect, database: str) -> None:
    migrate(database)
    engine = connect(database)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    require_head(engine)
    migrate(database)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"


def test_whoever_waits_for_the_schema_goes_on_when_it_is_there(connect: Connect, database: str) -> None:
    command = [sys.executable, "-m", "services.buffer", "await-schema"]
    with subprocess.Popen(command, env={"TBA_DATABASE_URL": database}, stderr=subprocess.PIPE, text=True) as waiter:
        assert waiter.stderr is not None
        assert "waiting for the schema" in waiter.stderr.readline()
        migrate(database)
        assert waiter.wait(60) == 0
