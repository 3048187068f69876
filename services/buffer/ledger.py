"""The ledger: what was ordered from the generators must be found again. All figures are in completions.

issued = stored + duplicates + dead_lettered + expired + in_flight, always. `check` compares that book with the
tables it speaks of, which are written by other statements: a bug would have to lie the same way twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, FromClause, case, func, select

from services.buffer.state_tables import sampler_state
from services.buffer.tables import batches, draws, evaluations, issues, payloads, prompts, trajectories
from tba_common.messages import Purpose


@dataclass(frozen=True, slots=True)
class Ledger:
    """How the completions that were ordered for one purpose ended."""

    issued: int
    stored: int
    duplicates: int
    dead_lettered: int
    expired: int
    in_flight: int

    @property
    def balances(self) -> bool:
        """Is every completion that was ordered accounted for?"""
        ended = self.stored + self.duplicates + self.dead_lettered + self.expired
        return self.issued == ended + self.in_flight


def ledger(connection: Connection, run_id: str, purpose: Purpose = "train") -> Ledger:
    """Add up the orders of a run."""
    open_completions = case((issues.c.state == "in_flight", issues.c.completions), else_=0)
    columns = (
        issues.c.completions,
        issues.c.stored,
        issues.c.duplicates,
        issues.c.dead_lettered,
        issues.c.expired,
        open_completions,
    )
    query = select(*(func.coalesce(func.sum(column), 0) for column in columns))
    row = connection.execute(query.where(issues.c.run_id == run_id, issues.c.purpose == purpose)).one()
    return Ledger(*map(int, row))


def check(connection: Connection, run_id: str) -> list[str]:
    """Compare independent sources; return a sentence for each discrepancy, none if all is well.

    Run it in a REPEATABLE READ transaction when the buffer is at work, or the sources are of different moments.
    """
    train, evaluated = ledger(connection, run_id), ledger(connection, run_id, "eval")
    state = connection.execute(select(sampler_state).where(sampler_state.c.run_id == run_id)).one()
    rows = _count(connection, trajectories, trajectories.c.run_id == run_id)
    with_payload = trajectories.join(
        payloads,
        (payloads.c.trajectory_id == trajectories.c.trajectory_id) & (payloads.c.run_id == trajectories.c.run_id),
    )
    sources = {
        "train orders that balance": (True, train.balances),
        "eval orders that balance": (True, evaluated.balances),
        "stored completions, and trajectories with those evicted": (train.stored, rows + state.evicted),
        "stored and duplicate completions, and inserts of the limiter": (
            train.stored + train.duplicates,
            state.inserts,
        ),
        "trajectories, and payloads": (rows, _count(connection, with_payload, trajectories.c.run_id == run_id)),
        "answered evaluations, and their rows": (
            evaluated.stored,
            _count(connection, evaluations, evaluations.c.run_id == run_id),
        ),
        "training orders, and orders counted by prompts": (
            _count(connection, issues, (issues.c.run_id == run_id) & (issues.c.purpose == "train")),
            _ordered_by_prompts(connection, run_id),
        ),
        "issues with more trajectories than they stored, and none": (_overfull(connection, run_id), 0),
        "batches, and their highest number": _batch_numbers(connection, run_id),
        "draws without a batch, and none": (_stray_draws(connection, run_id), 0),
    }
    return [f"{name}: {one} and {other}" for name, (one, other) in sources.items() if one != other]


def _count(connection: Connection, table: FromClause, condition: ColumnElement[bool]) -> int:
    return int(connection.execute(select(func.count()).select_from(table).where(condition)).scalar_one())


def _ordered_by_prompts(connection: Connection, run_id: str) -> int:
    of_run = select(issues.c.prompt_id).where(issues.c.run_id == run_id)
    query = select(func.coalesce(func.sum(prompts.c.issues), 0)).where(prompts.c.prompt_id.in_(of_run))
    return int(connection.execute(query).scalar_one())


def _overfull(connection: Connection, run_id: str) -> int:
    held = (
        select(trajectories.c.issue_id, func.count().label("held"))
        .where(trajectories.c.run_id == run_id)
        .group_by(trajectories.c.issue_id)
        .subquery()
    )
    joined = held.join(issues, issues.c.issue_id == held.c.issue_id)
    return _count(connection, joined, held.c.held > issues.c.stored)


def _batch_numbers(connection: Connection, run_id: str) -> tuple[int, int]:
    query = select(func.count(), func.coalesce(func.max(batches.c.batch_id), 0)).where(batches.c.run_id == run_id)
    count, highest = connection.execute(query).one()
    return int(count), int(highest)


def _stray_draws(connection: Connection, run_id: str) -> int:
    known = select(batches.c.batch_id).where(batches.c.run_id == run_id)
    return _count(connection, draws, (draws.c.run_id == run_id) & draws.c.batch_id.not_in(known))
