"""A migrated, empty database for each test, and a buffer's world on it: the schema is made once and then emptied."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text

from services.buffer.migrations import migrate
from services.buffer.schema import metadata
from tba_cli.local import postgres

if TYPE_CHECKING:
    from tests.buffer.world import World


@pytest.fixture(scope="session")
def schema(postgres_url: str) -> Iterator[Engine]:
    """A database with the newest schema."""
    url = postgres.create_database(postgres_url, f"schema_{uuid.uuid4().hex}")
    migrate(url)
    engine = create_engine(url, poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
def migrated(schema: Engine) -> str:
    """SQLAlchemy URL of a database with the newest schema, without a row, its identities at 1."""
    tables = ", ".join(metadata.tables)
    with schema.begin() as connection:
        connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY"))
    return schema.url.render_as_string(hide_password=False)


@pytest.fixture
def world(migrated: str) -> Iterator[World]:
    """Everything around a buffer, on an empty database."""
    from tests.buffer.world import World  # not before pytest is set up: kafka-python warns when it is imported

    world = World(migrated)
    yield world
    world.close()
