"""What is kept for people to look at leaves after a while: dead letters, gradings, decisions of the autoscaler.

The ledger reads none of them, so that it stands as it was. Whatever may still be needed stays: a letter that is about
to be replayed, a grading that a letter could bring back, the newest decision.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import text

from services.buffer.lease import Lease

#: Longer than a dead letter stays on the wire (topics.py), and than anybody needs to find out about a fault.
KEPT: Final = "30 days"
_EVERY_SECONDS: Final = 600.0
_AT_ONCE: Final = 1_000  # of each, so that a turn stays short however much has piled up
_DELETES: Final = (
    text("""
        DELETE FROM dead_letters WHERE dead_letter_id IN (
            SELECT dead_letter_id FROM dead_letters
            WHERE run_id = :run_id AND created_at < now() - CAST(:kept AS interval)
                AND (replay_asked_at IS NULL OR replayed_at IS NOT NULL OR replay_fault IS NOT NULL)
            LIMIT :at_once FOR UPDATE SKIP LOCKED
        )
    """),
    text("""
        DELETE FROM gradings WHERE grading_id IN (
            SELECT grading_id FROM gradings
            WHERE run_id = :run_id AND settled_at < now() - CAST(:kept AS interval)
                AND NOT EXISTS (SELECT FROM dead_letters WHERE dead_letters.issue_id = gradings.issue_id)
            LIMIT :at_once FOR UPDATE SKIP LOCKED
        )
    """),
    text("""
        DELETE FROM scale_decisions WHERE decision_id IN (
            SELECT decision_id FROM scale_decisions
            WHERE run_id = :run_id AND decided_at < now() - CAST(:kept AS interval)
                AND decision_id < (SELECT max(decision_id) FROM scale_decisions WHERE run_id = :run_id)
            LIMIT :at_once
        )
    """),
)


class Retention:
    """Single-threaded. `now` is a monotonic clock, in seconds."""

    def __init__(self, lease: Lease, run_id: str) -> None:
        self._lease, self._run_id = lease, run_id
        self._due_at: float | None = None

    def turn(self, now: float) -> None:
        """Every ten minutes, delete some of what is old enough.

        Not at once: in an upgrade, the migration may still be about to grant it.
        """
        if self._due_at is None:
            self._due_at = now + _EVERY_SECONDS
        if now < self._due_at:
            return
        self._due_at = now + _EVERY_SECONDS
        given = {"run_id": self._run_id, "kept": KEPT, "at_once": _AT_ONCE}
        with self._lease.transaction() as connection:
            for statement in _DELETES:
                connection.execute(statement, given)
