"""One active buffer per run: a lease row whose epoch fences every write.

Whoever takes an expired lease raises its epoch. Every transaction that writes first locks the row with its own epoch,
so a zombie that slept through its expiry finds another epoch and its transaction fails before it can commit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, Engine, func, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError

from services.buffer.state_tables import leases

LEASE_SECONDS: Final = 5.0
_BRIEFLY: Final = text("SET LOCAL lock_timeout = '1s'")
_LOCK: Final = text("SELECT epoch FROM leases WHERE name = :name AND epoch = :epoch FOR SHARE")

log = logging.getLogger(__name__)


class LeaseLostError(Exception):
    """Another process took over: this one must stop writing at once."""


class Lease:
    """The right to write for `name`, held by `owner`; owners must be unique per process."""

    def __init__(self, engine: Engine, name: str, owner: str) -> None:
        self._engine, self._name, self._owner = engine, name, owner
        self.epoch = 0  # not held

    def acquire(self) -> bool:
        """Take the lease if it is free or expired; return whether it is held now."""
        expires = func.now() + timedelta(seconds=LEASE_SECONDS)
        statement = insert(leases).values(name=self._name, owner=self._owner, epoch=1, expires_at=expires)
        statement = statement.on_conflict_do_update(
            index_elements=[leases.c.name],
            set_={"owner": self._owner, "epoch": leases.c.epoch + 1, "expires_at": expires},
            where=leases.c.expires_at < func.now(),
        )
        try:
            with self._engine.begin() as connection:
                connection.execute(_BRIEFLY)
                epoch = connection.execute(statement.returning(leases.c.epoch)).scalar_one_or_none()
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable):
                raise
            return False  # its holder is in the middle of a transaction
        if epoch is None:
            return False
        self.epoch = epoch
        log.info("lease taken", extra={"lease": self._name, "owner": self._owner, "epoch": epoch})
        return True

    def renew(self) -> None:
        """Hold the lease for its full time again.

        Raises:
            LeaseLostError: another process took it.
        """
        with self._engine.begin() as connection:
            self.extend(connection)

    def extend(self, connection: Connection) -> None:
        """Renew in an open transaction: the last act of one that took long."""
        self._expire_in(connection, LEASE_SECONDS)

    def release(self) -> None:
        """Give the lease back, so that a standby need not wait for it to expire."""
        with self._engine.begin() as connection:
            self._expire_in(connection, -1.0)
        self.epoch = 0

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a transaction that can only commit while the lease is ours.

        Raises:
            LeaseLostError: another process took it.
        """
        with self._engine.begin() as connection:
            if connection.execute(_LOCK, {"name": self._name, "epoch": self.epoch}).scalar_one_or_none() is None:
                raise self._lost()
            yield connection

    @contextmanager
    def long_transaction(self) -> Iterator[Connection]:
        """Open a transaction that may take longer than a lease lasts: it ends with a renewal.

        Raises:
            LeaseLostError: another process took it.
        """
        with self.transaction() as connection:
            yield connection
            self.extend(connection)

    def _expire_in(self, connection: Connection, seconds: float) -> None:
        mine = update(leases).where(leases.c.name == self._name, leases.c.epoch == self.epoch)
        expires = func.clock_timestamp() + timedelta(seconds=seconds)
        if connection.execute(mine.values(expires_at=expires)).rowcount != 1:
            raise self._lost()

    def _lost(self) -> LeaseLostError:
        return LeaseLostError(f"lease {self._name!r}: epoch {self.epoch} of {self._owner} is over")
