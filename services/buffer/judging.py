"""Sends gradings and re-scorings straight to their first scorer: orders that no generator has to see.

Like the feed it makes an order a row before it sends it, and sends again what does not come back. Gradings go first:
somebody waits for each. Re-scorings are held to a bounded number at once, for they share the scorers with training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Final

from sqlalchemy import Connection, func, update

from services.buffer import gradings, judged, orders, rescoring
from services.buffer.arrays import any_of
from services.buffer.in_flight import Waiting
from services.buffer.lease import Lease
from services.buffer.orders import Issue, KnownTask
from services.buffer.pacing import Turnaround
from services.buffer.tables import issues
from tba_common.messages import Purpose, Rollout

PURPOSES: Final[tuple[Purpose, ...]] = ("grade", "rescore")
_LOOK_SECONDS: Final = 0.2
_GRADINGS_AT_ONCE: Final = 64
_RESCORES_IN_FLIGHT: Final = 32
_MAX_ATTEMPTS: Final = 5

log = logging.getLogger(__name__)


class Judging:
    """Single-threaded. `now` is everywhere the same monotonic clock, in seconds."""

    def __init__(self, lease: Lease, run_id: str, send: Callable[[Rollout], None], *, reissue_seconds: float) -> None:
        self._lease, self._run_id, self._send = lease, run_id, send
        self._turnaround = {purpose: Turnaround(reissue_seconds) for purpose in PURPOSES}
        self._waiting: dict[int, Waiting] = {}
        self._looked_at = float("-inf")

    def load(self, now: float) -> None:
        """Take over what is in flight, with a full deadline from now."""
        with self._lease.transaction() as connection:
            found = orders.load_in_flight(connection, self._run_id, PURPOSES)
        self.reopened(found, now)

    def reopened(self, found: Iterable[Issue], now: float) -> None:
        """Wait for these: something that belongs to them was sent again."""
        for issue in found:
            self._waiting[issue.issue_id] = Waiting(issue, now)

    def settled(self, issue_ids: Iterable[int], now: float) -> None:
        """Take note of orders that were settled."""
        for issue_id in issue_ids:
            if (waiting := self._waiting.pop(issue_id, None)) is not None:
                self._turnaround[waiting.issue.purpose].answered(now, now - waiting.sent_at)

    def lost(self) -> None:
        """Count everything in flight as lost, because the broker lost its logs."""
        self._waiting = {i: replace(w, sent_at=float("-inf")) for i, w in self._waiting.items()}

    def turn(self, now: float, tasks: Mapping[int, KnownTask]) -> None:
        """Send what was asked for, and what did not come back, a few times a second."""
        if now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        overdue = [i for i, w in self._waiting.items() if now - w.sent_at > self._deadline_seconds(w.issue.purpose)]
        room = _RESCORES_IN_FLIGHT - sum(w.issue.purpose == "rescore" for w in self._waiting.values())
        with self._lease.transaction() as connection:
            again = self._try_again(connection, overdue)
            fresh = gradings.order(connection, self._run_id, _GRADINGS_AT_ONCE)
            fresh += rescoring.order(connection, self._run_id, tasks, max(room, 0))
            found = orders.find_issues(connection, [*again, *fresh]) if again or fresh else []
            rollouts = [self._rollout(connection, issue, tasks) for issue in found]
        for rollout in rollouts:
            if rollout is not None:
                self._send(rollout)
        self.reopened((issue for issue, rollout in zip(found, rollouts, strict=True) if rollout is not None), now)

    def _deadline_seconds(self, purpose: Purpose) -> float:
        return self._turnaround[purpose].deadline_seconds()

    def _try_again(self, connection: Connection, overdue: Collection[int]) -> list[int]:
        """Count one more attempt; give up on orders that nobody answered too often."""
        late = [i for i in overdue if not self._waiting[i].is_lost]
        given_up = [i for i in late if self._waiting[i].issue.attempt >= _MAX_ATTEMPTS]
        again = [i for i in overdue if i not in given_up]
        for issue in orders.find_issues(connection, given_up) if given_up else []:
            judged.give_up(connection, issue, f"no answer after {_MAX_ATTEMPTS} attempts: do its scorers run?")
        for purpose in {self._waiting[i].issue.purpose for i in late}:
            self._turnaround[purpose].lapsed()
        for issue_id in overdue:
            del self._waiting[issue_id]
        if overdue:
            log.warning("judgements overdue", extra={"again": len(again), "given_up": len(given_up)})
            once_more = {"attempt": issues.c.attempt + 1, "issued_at": func.now()}
            counted = issues.c.issue_id == any_of([i for i in late if i in again])
            connection.execute(update(issues).where(counted).values(once_more))
        return again

    def _rollout(self, connection: Connection, issue: Issue, tasks: Mapping[int, KnownTask]) -> Rollout | None:
        if issue.purpose == "grade":
            return gradings.rollout_of(connection, self._run_id, issue)
        rollout = rescoring.rollout_of(connection, self._run_id, issue, tasks[issue.task_id])
        if rollout is None:
            judged.give_up(connection, issue, "some of these trajectories have left the buffer")
        return rollout
