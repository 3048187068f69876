"""The real servers, embedded: one broker and one PostgreSQL per session, ended when the session ends."""

from __future__ import annotations

import gc
import re
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tba_cli.local import kafka_broker, postgres
from tba_common.tasks import SCORER_KINDS

#: These run where vLLM is installed, which is an environment of its own.
collect_ignore = [] if find_spec("vllm") else ["vllm"]


#: Modules stay: to look for garbage among them while they are imported, and again with every test, takes seconds.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors here, except one that kafka-python 3.0.12 cannot be imported without."""
    config.addinivalue_line("filterwarnings", "ignore:(read|open)_text is deprecated:DeprecationWarning")
    if find_spec("hypothesis"):  # it is not beside vLLM
        from hypothesis import settings

        settings.load_profile("ci")  # the same examples every time, and no deadline for a machine that stalls


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave a module unread that is integration as a whole, where no integration is asked for.

    It may import transformers or a server, which takes longer than all that is asked for.
    """
    if config.option.markexpr != "not integration" or collection_path.suffix != ".py":
        return None
    whole = re.search(r"^pytestmark = pytest\.mark\.integration$", collection_path.read_text(), re.MULTILINE)
    return True if whole else None


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """Bootstrap servers of a broker with every topic; a fresh `run_id` keeps tests apart."""
    with kafka_broker.running(scorers=SCORER_KINDS) as servers:
        yield servers


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """SQLAlchemy URL of a PostgreSQL server's owner; `tests.logins` has the other users."""
    from tests import logins  # needs SQLAlchemy, which is not beside vLLM

    with postgres.running(tmp_path_factory.mktemp("postgres")) as url:
        logins.make_logins(url)
        yield url


@pytest.fixture
def database(postgres_url: str) -> str:
    """SQLAlchemy URL of a fresh, empty database without migrations."""
    return postgres.create_database(postgres_url, f"test_{uuid.uuid4().hex}")


@pytest.fixture
def run_id() -> str:
    """A run that no other test belongs to."""
    return f"test-{uuid.uuid4().hex[:12]}"
