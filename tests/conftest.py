"""The real servers, embedded: one broker and one PostgreSQL per session, ended when the session ends."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tba_cli.local import kafka_broker, postgres
from tba_common.tasks import SCORER_KINDS

#: These run where vLLM is installed, which is an environment of its own.
collect_ignore = [] if find_spec("vllm") else ["vllm"]


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors here, except one that kafka-python 3.0.12 cannot be imported without."""
    config.addinivalue_line("filterwarnings", "ignore:(read|open)_text is deprecated:DeprecationWarning")


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """Bootstrap servers of a broker with every topic; a fresh `run_id` keeps tests apart."""
    with kafka_broker.running(scorers=SCORER_KINDS) as servers:
        yield servers


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """SQLAlchemy URL of a PostgreSQL server."""
    with postgres.running(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture
def database(postgres_url: str) -> str:
    """SQLAlchemy URL of a fresh, empty database without migrations."""
    return postgres.create_database(postgres_url, f"test_{uuid.uuid4().hex}")


@pytest.fixture
def run_id() -> str:
    """A run that no other test belongs to."""
    return f"test-{uuid.uuid4().hex[:12]}"
