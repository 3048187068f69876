"""What came back for gradings and re-scorings, settled: the other half of ingest, for orders that no generator saw.

An order settles once: what comes a second time, or for an order that was given up, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import Connection, select

from services.buffer import gradings, orders, rescoring, store
from services.buffer.arrays import any_of
from services.buffer.arrivals import fault_of_scores
from services.buffer.orders import Issue
from services.buffer.rescoring import Changed
from services.buffer.store import Settlement
from services.buffer.tables import issues
from tba_common.kafka import Record
from tba_common.messages import DeadLetter, Trajectories


@dataclass(slots=True)
class Judged:
    """What a transaction did about them."""

    changed: Changed = field(default_factory=dict)
    settled: list[int] = field(default_factory=list)  # issues
    rejected: list[tuple[Record, str]] = field(default_factory=list)


def settle(
    connection: Connection,
    run_id: str,
    arrivals: Iterable[tuple[Record, Trajectories]],
    dead_letters: Iterable[DeadLetter],
) -> Judged:
    """Write the scores of gradings and re-scorings that came back, and the reasons of those that will not."""
    arrived = {trajectories.rollout.prompt.issue_id: (record, trajectories) for record, trajectories in arrivals}
    buried = {letter.issue_id: letter.reason for letter in dead_letters if letter.issue_id is not None}
    judged = Judged()
    for issue in _open(connection, run_id, {*arrived, *buried}):
        if issue.issue_id in arrived:
            record, trajectories = arrived[issue.issue_id]
            fault = _fault(issue, trajectories)
            if fault is None:
                _store(connection, run_id, issue, trajectories, judged)
            else:
                judged.rejected.append((record, fault))
                _fail(connection, issue, fault)
        else:
            _fail(connection, issue, buried[issue.issue_id])
        judged.settled.append(issue.issue_id)
    return judged


def give_up(connection: Connection, issue: Issue, reason: str) -> None:
    """Settle an order that nobody answered."""
    _write_fault(connection, issue, reason)
    orders.expire(connection, [issue.issue_id])


def _open(connection: Connection, run_id: str, issue_ids: set[int]) -> list[Issue]:
    if not issue_ids:
        return []
    query = select(issues.c.issue_id).where(
        issues.c.run_id == run_id,
        issues.c.issue_id == any_of(issue_ids),
        issues.c.purpose.in_(("grade", "rescore")),
        issues.c.state == "in_flight",
    )
    return orders.find_issues(connection, list(connection.scalars(query)))


def _fault(issue: Issue, trajectories: Trajectories) -> str | None:
    rollout = trajectories.rollout
    if rollout.prompt.purpose != issue.purpose or len(rollout.completions) != issue.completions:
        got = f"{rollout.prompt.purpose} of {len(rollout.completions)}"
        return f"issue {issue.issue_id}: expected {issue.purpose} of {issue.completions} completions, got {got}"
    if fault := fault_of_scores(rollout, issue.completions):
        return fault
    if not all(np.isfinite(values).all() for values in (trajectories.rewards, *(s.values for s in rollout.scores))):
        return f"issue {issue.issue_id}: expected finite rewards and scores, got {trajectories.rewards.tolist()}"
    return None


def _store(connection: Connection, run_id: str, issue: Issue, trajectories: Trajectories, judged: Judged) -> None:
    found = issue.completions
    if issue.purpose == "grade":
        gradings.store(connection, _request(issue), trajectories)
    else:
        changed = rescoring.store(connection, run_id, issue, trajectories)
        found = sum(map(len, changed.values()))
        for key, rows in changed.items():
            judged.changed.setdefault(key, []).extend(rows)
    gone = issue.completions - found
    store.settle(connection, [Settlement(issue.issue_id, found, duplicates=0, dead_lettered=0, expired=gone)])


def _fail(connection: Connection, issue: Issue, reason: str) -> None:
    _write_fault(connection, issue, reason)
    lost = Settlement(issue.issue_id, stored=0, duplicates=0, dead_lettered=issue.completions, expired=0)
    store.settle(connection, [lost])


def _write_fault(connection: Connection, issue: Issue, reason: str) -> None:
    if issue.purpose == "grade":
        gradings.fail(connection, _request(issue), reason)
    else:
        rescoring.fail(connection, issue.issue_id, reason)


def _request(issue: Issue) -> int:
    assert issue.request_id is not None  # the tables demand it of these purposes
    return issue.request_id
