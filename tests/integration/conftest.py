"""A migrated database per test: the schema is made once and copied."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import create_engine, text
from tba_cli.local import postgres

from services.buffer.migrations import migrate


@pytest.fixture(scope="session")
def template(postgres_url: str) -> str:
    """Name of a migrated database that nobody is connected to."""
    name = f"template_{uuid.uuid4().hex}"
    migrate(postgres.create_database(postgres_url, name))
    return name


@pytest.fixture
def migrated(postgres_url: str, template: str) -> str:
    """SQLAlchemy URL of a fresh, migrated database."""
    name = f"test_{uuid.uuid4().hex}"
    engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    engine.dispose()
    return f"{postgres_url.rpartition('/')[0]}/{name}"
