"""The run at one glance: where it is, how fast it goes, what lies between services, and what it waits for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from fastapi import APIRouter
from sqlalchemy import ColumnElement, Connection, Row, func, select

from services.buffer.api_context import Shared
from services.buffer.api_views import BufferView, LedgerView, Queues, Rates, Staleness, StatusView, StepView
from services.buffer.api_waiting import Facts, waiting_for
from services.buffer.ledger import ledger
from services.buffer.request_tables import evaluation_requests
from services.buffer.tables import (
    batches,
    dead_letters,
    issues,
    runs,
    steps,
    tasks,
    trajectories,
)

router: Final = APIRouter(prefix="/v1", tags=["run"])
_STEPS_OF_STALENESS: Final = 50
_MINUTE_SECONDS: Final = 60
_LATEST_ORDERS: Final = 16


@router.get("/status", operation_id="getStatus")
def get_status(context: Shared) -> StatusView:
    """Show the run at one glance."""
    with context.engine.connect() as connection:
        return _status(connection, context.run_id)


def _status(connection: Connection, run_id: str) -> StatusView:
    silent = func.extract("epoch", func.now() - runs.c.status_at).label("silent_seconds")
    run = connection.execute(select(runs, silent).where(runs.c.run_id == run_id)).one_or_none()
    latest = select(steps.c.report, steps.c.created_at).where(steps.c.run_id == run_id)
    newest_first = connection.execute(latest.order_by(steps.c.step.desc()).limit(_STEPS_OF_STALENESS))
    recent = [StepView(**row.report, created_at=row.created_at) for row in newest_first]
    states = {"active": 0, "paused": 0} | _task_states(connection, run_id)
    queues = _queues(connection, run_id)
    buffer, rates = _buffer(run)
    book = ledger(connection, run_id)
    policy_version = None if run is None or run.policy_version < 0 else run.policy_version
    facts = Facts(
        policy_version=policy_version,
        tasks_active=states["active"],
        tasks_paused=states["paused"],
        trajectories=buffer.trajectories,
        prompts_in_flight=queues.prompts_in_flight,
        blocked=buffer.blocked,
        buffer_silent_seconds=buffer.silent_seconds,
        since_trajectory_seconds=_since_trajectory(connection, run_id),
        since_step_seconds=_age(recent[0].created_at) if recent else None,
        usual_step_seconds=_step_seconds(recent),
        refusal=_refusal(connection, run_id),
    )
    state, sentence = waiting_for(facts)
    return StatusView(
        run_id=run_id,
        policy_version=policy_version,
        step=0 if run is None else run.step,
        state=state,
        waiting_for=sentence,
        tasks_active=facts.tasks_active,
        tasks_paused=facts.tasks_paused,
        staleness=_staleness(recent),
        rates=rates,
        queues=queues,
        buffer=buffer,
        ledger=LedgerView.model_validate(book, from_attributes=True),
    )


def _task_states(connection: Connection, run_id: str) -> dict[str, int]:
    query = select(tasks.c.state, func.count().label("tasks")).where(tasks.c.run_id == run_id).group_by(tasks.c.state)
    return {row.state: row.tasks for row in connection.execute(query)}


def _staleness(recent: Sequence[StepView]) -> Staleness:
    histogram: Counter[int] = Counter()
    for step in recent:
        histogram.update(step.staleness_versions)
    total = histogram.total()
    mean = sum(versions * count for versions, count in histogram.items()) / total if total else None
    return Staleness(mean_versions=mean, histogram=dict(sorted(histogram.items())))


def _step_seconds(recent: Sequence[StepView]) -> float | None:
    if len(recent) < 2:
        return None
    return (recent[0].created_at - recent[-1].created_at).total_seconds() / (len(recent) - 1)


def _since_trajectory(connection: Connection, run_id: str) -> float | None:
    newest = select(trajectories.c.created_at).where(trajectories.c.run_id == run_id)
    created_at = connection.scalar(newest.order_by(trajectories.c.trajectory_id.desc()).limit(1))
    return None if created_at is None else _age(created_at)


def _refusal(connection: Connection, run_id: str) -> str | None:
    """Why the latest orders were dead-lettered; None if one of them was answered."""
    settled = select(issues.c.dead_lettered).where(
        issues.c.run_id == run_id, issues.c.state == "settled", issues.c.purpose.in_(("train", "eval"))
    )
    latest = connection.scalars(settled.order_by(issues.c.issue_id.desc()).limit(_LATEST_ORDERS)).all()
    if not latest or not all(latest):
        return None
    letters = select(dead_letters.c.reason).where(dead_letters.c.run_id == run_id, dead_letters.c.issue_id.is_not(None))
    return connection.scalar(letters.order_by(dead_letters.c.dead_letter_id.desc()).limit(1))


def _age(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()


def _queues(connection: Connection, run_id: str) -> Queues:
    of_prompts = issues.c.purpose.in_(("train", "eval"))
    open_orders = (issues.c.run_id == run_id) & (issues.c.state == "in_flight") & of_prompts
    age = func.extract("epoch", func.now() - func.min(issues.c.issued_at))
    orders = connection.execute(select(func.count(), age).where(open_orders)).one()
    untrained = (batches.c.run_id == run_id) & batches.c.trained_step.is_(None)
    unissued = (evaluation_requests.c.run_id == run_id) & evaluation_requests.c.issued_at.is_(None)
    return Queues(
        prompts_in_flight=orders[0],
        oldest_prompt_seconds=orders[1],
        batches_in_flight=_count(connection, untrained),
        evaluations_waiting=_count(connection, unissued),
        dead_letters=_count(connection, dead_letters.c.run_id == run_id),
    )


def _count(connection: Connection, rows: ColumnElement[bool]) -> int:
    return connection.scalar(select(func.count()).where(rows)) or 0


def _buffer(run: Row[*tuple[Any, ...]] | None) -> tuple[BufferView, Rates]:
    if run is None:
        return BufferView(), Rates()
    is_fresh = run.silent_seconds is not None and run.silent_seconds < _MINUTE_SECONDS
    buffer = BufferView.model_validate({**run.status, "silent_seconds": run.silent_seconds})
    return buffer, Rates.model_validate(run.status) if is_fresh else Rates()
