"""The schema's history. `migrate` brings a database to the newest revision; every process checks before it starts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, text

from services.buffer.settings import BufferSettings
from tba_common.lifecycle import configure_logging

_DIRECTORY: Final = Path(__file__).parent
_LOCK: Final = 0x7BA_5C4E3A  # any number: the same in every process that migrates

log = logging.getLogger(__name__)


class SchemaError(Exception):
    """The database does not have the schema that this program was written for."""


def main() -> None:
    """Migrate the database that the environment names."""
    settings = BufferSettings.from_environment()
    configure_logging(settings.log_format)
    migrate(settings.database_url)
    log.info("schema is current", extra={"revision": _head()})


def migrate(url: str) -> None:
    """Bring the database at an SQLAlchemy URL to the newest revision; processes that race wait for one another."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        command.upgrade(_config(connection), "head")
    engine.dispose()


def require_head(engine: Engine) -> None:
    """Check that the database is at the newest revision.

    Raises:
        SchemaError: it is at another one.
    """
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current != _head():
        raise SchemaError(
            f"the database schema is at {current or 'no revision'}, this program needs {_head()}:"
            " run `python -m services.buffer migrate`"
        )


def _head() -> str | None:
    return ScriptDirectory(str(_DIRECTORY)).get_current_head()


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_DIRECTORY))
    config.attributes["connection"] = connection
    return config
