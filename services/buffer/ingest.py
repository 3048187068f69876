"""Ingest: the records of one gathering become rows, settled orders and offsets, in one transaction.

A crash before the commit leaves nothing, a crash after it leaves all; either way the records that come again
change nothing, because an order settles once and every other write states a fact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy import Connection

from services.buffer import judged, seeds, store
from services.buffer.arrivals import Key, Outcome, Plan, bury, judge
from services.buffer.inbox import Inbox
from services.buffer.index import Rows, rows_of
from services.buffer.lease import Lease
from services.buffer.payload_cache import Payload
from services.buffer.reports import apply_dead_letters, apply_reports, apply_weights
from services.buffer.store import Settlement
from services.buffer.trajectory_rows import Stored, store_rows
from tba_common.kafka import Record
from tba_common.messages import Resumed, Step, Weights


class Rejects(Protocol):
    """Where records at fault go: tba_common.delivery.DeadLetters."""

    def handled(self) -> None: ...

    def reject(self, record: Record, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Group:
    """The trajectories of one prompt that a commit made drawable."""

    prompt_id: int
    task_id: int
    rows: Rows


@dataclass(frozen=True, slots=True)
class Commit:
    """What a transaction changed: everything the rest of the buffer must hear of it."""

    groups: tuple[Group, ...] = ()
    settled: tuple[tuple[Outcome, Settlement], ...] = ()
    reports: tuple[Step | Resumed, ...] = ()
    weights: tuple[Weights, ...] = ()
    redelivered: int = 0
    inserts: int = 0
    payloads: Mapping[int, Payload] = field(default_factory=dict)  # of the trajectories that were stored
    judged: tuple[int, ...] = ()  # orders of gradings and re-scorings that were settled


def ingest(lease: Lease, run_id: str, inbox: Inbox, *, version: int, max_staleness: int, rejects: Rejects) -> Commit:
    """Commit what was gathered.

    Args:
        version: of the learner, as far as known before these records (V).
        max_staleness: completions further behind are counted as expired, not stored (D).
        rejects: told of every record at fault, before the commit: a crash between the two repeats it.

    Raises:
        LeaseLostError: another buffer took over; nothing was committed.
        TooManyBad: hardly any of the records was good; nothing was committed.
    """
    version = max([version, *versions_in(inbox.weights, inbox.reports)])
    with lease.transaction() as connection:
        apply_reports(connection, run_id, inbox.reports)
        for weights in inbox.weights:
            apply_weights(connection, run_id, weights)
        apply_dead_letters(connection, run_id, inbox.dead_letters)
        commit, rejected = _take_in(connection, run_id, inbox, oldest_version=version - max_staleness)
        store.save_progress(connection, run_id, inserts=commit.inserts, offsets=inbox.offsets)
        if commit.groups:
            rejects.handled()
        for record, reason in [*inbox.bad, *rejected]:
            rejects.reject(record, reason)
    return commit


def versions_in(weights: Sequence[Weights], reports: Sequence[Step | Resumed]) -> list[int]:
    """Return every version of the learner that the messages speak of."""
    return [w.version for w in weights] + [r.policy_version for r in reports if isinstance(r, Step)]


def _take_in(
    connection: Connection, run_id: str, inbox: Inbox, *, oldest_version: int
) -> tuple[Commit, list[tuple[Record, str]]]:
    orders = store.find_orders(connection, run_id, inbox.issue_ids)
    plan = judge(inbox.arrivals, orders, oldest_version=oldest_version)
    bury(plan, [letter.issue_id for letter in inbox.dead_letters if letter.issue_id is not None], orders)
    stored = store_rows(connection, run_id, list(plan.rows.values()))
    store.store_evaluations(connection, run_id, plan.evaluations)
    store.keep_prompt_tokens(connection, plan.prompt_token_ids)
    settled = tuple((o, store.settlement_of(o, plan.first_issue, stored)) for o in plan.outcomes.values())
    store.settle(connection, [settlement for _, settlement in settled])
    if late := [o.order.issue_id for o in plan.outcomes.values() if o.expired == o.order.completions]:
        seeds.reopen(connection, late)
    inserts = sum(len(outcome.kept) for outcome in plan.outcomes.values())
    requests = judged.settle(connection, run_id, inbox.judged, inbox.dead_letters)
    changed = (Group(x, task_id, rows_of(rows)) for (x, task_id), rows in requests.changed.items() if rows)
    commit = Commit(
        groups=(*_groups(plan, stored), *changed),
        settled=settled,
        reports=tuple(inbox.reports),
        weights=tuple(inbox.weights),
        redelivered=plan.redelivered,
        inserts=inserts,
        payloads={
            stored[key].trajectory_id: (r.token_ids, r.logprobs) for key, r in plan.rows.items() if key in stored
        },
        judged=tuple(requests.settled),
    )
    return commit, [*plan.rejected, *requests.rejected]


def _groups(plan: Plan, stored: dict[Key, Stored]) -> tuple[Group, ...]:
    found: dict[int, list[tuple[int, int, float]]] = defaultdict(list)
    tasks: dict[int, int] = {}
    for key, row in plan.rows.items():
        if key in stored:
            tasks[row.prompt_id] = row.task_id
            found[row.prompt_id].append((row.policy_version, stored[key].trajectory_id, row.reward))
    return tuple(Group(x, tasks[x], rows_of(rows)) for x, rows in found.items())
