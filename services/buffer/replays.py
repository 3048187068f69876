"""Replays of dead letters: the order is opened again and the bytes go back to the topic that they came from.

A letter is replayed at most once: if it fails again, that is a new letter. An order that ended in any other way than by
dead-lettering all of it cannot be opened again, or the ledger would count its completions twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, func, select, update

from services.buffer import gradings, orders, rescoring
from services.buffer.lease import Lease
from services.buffer.orders import Issue
from services.buffer.tables import dead_letters, issues
from tba_common.delivery import BODY_BYTES

_LOOK_SECONDS: Final = 0.5
_AT_ONCE: Final = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Letter:
    """The bytes of a message that could not be handled, and where they came from."""

    topic: str
    partition: int
    schema_header: str
    body: bytes


def obstacle(letter: Row[Any], issue: Row[Any] | None) -> str | None:
    """Say why a letter cannot be replayed; None if it can. `issue` is the order it belongs to, if it is known."""
    if len(letter.body) >= BODY_BYTES:
        return f"a body of less than {BODY_BYTES} bytes: a longer one was cut"
    if issue is not None and issue.state == "settled" and issue.dead_lettered != issue.completions:
        ended = f"{issue.stored} stored, {issue.duplicates} duplicates, {issue.expired} expired"
        return f"an order of which all was dead-lettered, not {issue.dead_lettered} of {issue.completions}: {ended}"
    return None


class Replays:
    """Single-threaded. `send` puts letters on their topics and returns when the broker has them."""

    def __init__(self, lease: Lease, run_id: str, send: Callable[[Iterable[Letter]], None]) -> None:
        self._lease, self._run_id, self._send = lease, run_id, send
        self._looked_at = float("-inf")

    def turn(self, now: float) -> list[Issue]:
        """Replay what was asked for, oldest first; return the orders that are in flight again."""
        if now - self._looked_at < _LOOK_SECONDS:
            return []
        self._looked_at = now
        with self._lease.transaction() as connection:
            asked = self._asked(connection)
            sent = [(letter, issue) for letter in asked for issue in self._open(connection, letter)]
            if sent:  # delivered before it is recorded: a crash in between sends it twice, and an order settles once
                self._send(Letter(row.topic, row.partition, row.schema_header, row.body) for row, _ in sent)
        for letter, _ in sent:
            log.info("dead letter replayed", extra={"topic": letter.topic, "issue_id": letter.issue_id})
        return [issue for _, issue in sent if issue is not None]

    def _asked(self, connection: Connection) -> list[Row[Any]]:
        query = select(dead_letters).where(
            dead_letters.c.run_id == self._run_id,
            dead_letters.c.replay_asked_at.is_not(None),
            dead_letters.c.replayed_at.is_(None),
            dead_letters.c.replay_fault.is_(None),
        )
        return list(connection.execute(query.order_by(dead_letters.c.dead_letter_id).limit(_AT_ONCE)))

    def _open(self, connection: Connection, letter: Row[Any]) -> list[Issue | None]:
        """Open the order of a letter; return it, [None] where there is none, [] where it must not be sent."""
        issue = connection.execute(select(issues).where(issues.c.issue_id == letter.issue_id)).one_or_none()
        mine = update(dead_letters).where(dead_letters.c.dead_letter_id == letter.dead_letter_id)
        if (reason := obstacle(letter, issue)) is not None:
            connection.execute(mine.values(replay_fault=f"expected {reason}"))
            return []
        connection.execute(mine.values(replayed_at=func.now()))
        if issue is None:
            return [None]
        again = {"state": "in_flight", "settled_at": None, "dead_lettered": 0, "attempt": issues.c.attempt + 1}
        same = update(issues).where(issues.c.issue_id == issue.issue_id)
        connection.execute(same.values(**again, issued_at=func.now()))
        if issue.purpose == "grade":
            gradings.reopen(connection, issue.request_id)
        elif issue.purpose == "rescore":
            rescoring.reopen(connection, issue.issue_id)
        return list(orders.find_issues(connection, [issue.issue_id]))
