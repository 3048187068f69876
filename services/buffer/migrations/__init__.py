"""The schema's history. `migrate` brings a database to the newest revision; every process checks before it starts.

Law: a revision only adds to what the one before has (expand), and takes away what no program of the one before uses
(contract). So a program runs on the schema of the next version too, and an upgrade needs no pause.

While a change waits for its lock, everybody who comes after it waits too. So it waits shortly, gives way, and tries
again, one revision after the other.
"""

from __future__ import annotations

import logging
import threading
import time
from itertools import cycle
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import DeadlockDetected, InsufficientPrivilege, LockNotAvailable
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from services.buffer.migrations import roles
from services.buffer.settings import BufferSettings
from tba_common.lifecycle import configure_logging, end_on_sigterm

_DIRECTORY: Final = Path(__file__).parent
_RETRY_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 60.0
_LOCK: Final = 0x7BA_5C4E3A  # any number: the same in every process that migrates
# Below PostgreSQL's deadlock_timeout of 1 s it is the migration that gives way, not the line; but only what waits
# longer than that makes an autovacuum step aside.
_LOCK_TIMEOUTS: Final = ("500ms", "500ms", "500ms", "1500ms")

log = logging.getLogger(__name__)


class SchemaError(Exception):
    """The database does not have the schema that this program was written for."""


def main() -> None:
    """Migrate the database that the environment names."""
    end_on_sigterm()
    settings = BufferSettings.from_environment()
    configure_logging(settings.log_format)
    engine = create_engine(settings.database_url)
    wait_until_it_answers(engine, threading.Event())
    engine.dispose()
    migrate(settings.database_url)
    log.info("schema is current", extra={"revision": _head()})


def migrate(url: str) -> None:
    """Bring the database at an SQLAlchemy URL to the newest revision; processes that race wait for one another.

    Each revision is a transaction. One whose locks are not given is tried again for as long as it takes. A database
    that a newer program migrated stays as it is: after a step back to this version it still fits.
    """
    engine = create_engine(url)
    for lock_timeout in cycle(_LOCK_TIMEOUTS):
        try:
            if _is_migrated(engine, lock_timeout):
                break
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable | DeadlockDetected):
                raise
            log.info("what is to change is in use: trying again", extra={"reason": str(error.orig).splitlines()[0]})
            time.sleep(_RETRY_SECONDS)
    engine.dispose()


def _is_migrated(engine: Engine, lock_timeout: str) -> bool:
    """Go one revision further, if there is one; return whether that was all."""
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        current = _current(connection)
        if _is_newer(current):
            log.warning("the schema is newer than this program: left as it is")
            return True
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{lock_timeout}'")
        if current != _head():
            command.upgrade(_config(connection), "+1")
        if _current(connection) != _head():
            return False
        roles.grant(connection)
        return True


def wait_for_schema() -> None:
    """Wait for as long as it takes until the environment's database answers and has a schema that fits."""
    end_on_sigterm()
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
        SchemaError: it is at an older one, at none, or closed to this user.
    """
    try:
        with engine.connect() as connection:
            current = _current(connection)
    except ProgrammingError as error:
        if not isinstance(error.orig, InsufficientPrivilege):
            raise
        raise SchemaError(
            "the database user may not read the tables: put it into a role, and let `python -m services.buffer"
            " migrate` or an administrator grant to that (`python -m services.buffer roles`)"
        ) from error
    if current != _head() and not _is_newer(current):
        raise SchemaError(
            f"the database schema is at {current or 'no revision'}, this program needs {_head()}:"
            " run `python -m services.buffer migrate`"
        )


def wait_until_it_answers(engine: Engine, stop: threading.Event) -> None:
    """Give a server that starts beside us a minute; what it refuses then is the caller's to hear."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            engine.connect().close()
        except OperationalError as error:
            log.warning("waiting for the database", extra={"reason": str(error).splitlines()[0]})
            if stop.wait(_RETRY_SECONDS):
                break
        else:
            break


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
