"""A migrated, empty database for each test: the schema is made once and emptied between tests."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text

from services.buffer.migrations import migrate
from services.buffer.schema import metadata
from tba_cli.local import postgres


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
