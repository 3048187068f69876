"""The schema's history. `migrate` brings a database to the newest revision; every process checks before it starts.

Law: a revision only adds to what the one before has (expand), and takes away what no program of the one before uses
(contract). So a program runs on the schema of the next version too, and an upgrade needs no pause.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from services.buffer.settings import BufferSettings
from tba_common.lifecycle import configure_logging

_DIRECTORY: Final = Path(__file__).parent
_RETRY_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 60.0
_LOCK: Final = 0x7BA_5C4E3A  # any number: the same in every process that migrates

log = logging.getLogger(__name__)


class SchemaError(Exception):
    """The database does not have the schema that this program was written for."""


def main() -> None:
    """Migrate the database that the environment names."""
    settings = BufferSettings.from_environment()
    configure_logging(settings.log_format)
    _wait_until_it_answers(settings.database_url)
    migrate(settings.database_url)
    log.info("schema is current", extra={"revision": _head()})


def migrate(url: str) -> None:
    """Bring the database at an SQLAlchemy URL to the newest revision; processes that race wait for one another.

    A database that a newer program migrated stays as it is: after a step back to this version it still fits.
    """
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        if _is_newer(_current(connection)):
            log.warning("the schema is newer than this program: left as it is")
        else:
            command.upgrade(_config(connection), "head")
    engine.dispose()


def wait_for_schema() -> None:
    """Wait for as long as it takes until the environment's database answers and has a schema that fits."""
    settings = BufferSettings.from_environment()
    configure_logging(settings.log_format)
    engine = create_engine(settings.database_url)
    while True:
        try:
            require_head(engine)
        except (SchemaError, OperationalError) as error:
            log.info("waiting for the schema", extra={"reason": str(error).splitlines()[0]})
            time.sleep(_RETRY_SECONDS)
        else:
            return


def require_head(engine: Engine) -> None:
    """Check that the database is at the newest revision, or at one of a newer program.

    Raises:
        SchemaError: it is at an older one, or at none.
    """
    with engine.connect() as connection:
        current = _current(connection)
    if current != _head() and not _is_newer(current):
        raise SchemaError(
            f"the database schema is at {current or 'no revision'}, this program needs {_head()}:"
            " run `python -m services.buffer migrate`"
        )


def _wait_until_it_answers(url: str) -> None:
    """Give a server that starts beside us a minute; what it refuses then is the caller's to hear."""
    engine = create_engine(url)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            engine.connect().close()
        except OperationalError as error:
            log.info("waiting for the database", extra={"reason": str(error).splitlines()[0]})
            time.sleep(_RETRY_SECONDS)
        else:
            break
    engine.dispose()


def _head() -> str | None:
    return ScriptDirectory(str(_DIRECTORY)).get_current_head()


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _is_newer(revision: str | None) -> bool:
    """Whether a program that came after this one made it: it is none of those known here."""
    known = {script.revision for script in ScriptDirectory(str(_DIRECTORY)).walk_revisions()}
    return revision is not None and revision not in known


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_DIRECTORY))
    config.attributes["connection"] = connection
    return config
