"""The run at one glance: where it is, how fast it goes, what lies between services, and what it waits for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from fastapi import APIRouter
from sqlalchemy import Connection, Row, func, select, text

from services.buffer.api_context import Shared
from services.buffer.api_views import BufferView, LedgerView, Queues, Rates, Staleness, StatusView, StepView
from services.buffer.api_waiting import Facts, waiting_for
from services.buffer.tables import (
    batches,
    dead_letters,
    evaluation_requests,
    issues,
    runs,
    steps,
    tasks,
    trajectories,
)

router: Final = APIRouter(prefix="/v1", tags=["run"])
_STEPS_OF_STALENESS: Final = 50
_STEPS_OF_RATES: Final = 20
_NEWEST: Final = 10_000
_MINUTE: Final = text("interval '60 seconds'")


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
    queues, buffer = _queues(connection, run_id), _buffer(run)
    rates = _rates(recent[:_STEPS_OF_RATES], _stored_per_second(connection, run_id))
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
        usual_step_seconds=60 / rates.steps_per_minute if rates.steps_per_minute else None,
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
        ledger=_ledger(connection, run_id),
    )


def _task_states(connection: Connection, run_id: str) -> dict[str, int]:
    query = select(tasks.c.state, func.count()).where(tasks.c.run_id == run_id).group_by(tasks.c.state)
    return dict(connection.execute(query).tuples().all())


def _staleness(recent: Sequence[StepView]) -> Staleness:
    histogram: Counter[int] = Counter()
    for step in recent:
        histogram.update(step.staleness_versions)
    total = histogram.total()
    mean = sum(versions * count for versions, count in histogram.items()) / total if total else None
    return Staleness(mean_versions=mean, histogram=dict(sorted(histogram.items())))


def _rates(recent: Sequence[StepView], stored_per_second: float) -> Rates:
    if len(recent) < 2:
        return Rates(trajectories_per_second=stored_per_second, steps_per_minute=None, trained_per_second=None)
    seconds = max((recent[0].created_at - recent[-1].created_at).total_seconds(), 1e-3)
    trained = sum(step.trajectories for step in recent[:-1])
    return Rates(
        trajectories_per_second=stored_per_second,
        steps_per_minute=60 * (len(recent) - 1) / seconds,
        trained_per_second=trained / seconds,
    )


def _since_trajectory(connection: Connection, run_id: str) -> float | None:
    newest = select(trajectories.c.created_at).where(trajectories.c.run_id == run_id)
    created_at = connection.scalar(newest.order_by(trajectories.c.trajectory_id.desc()).limit(1))
    return None if created_at is None else _age(created_at)


def _age(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()


def _stored_per_second(connection: Connection, run_id: str) -> float:
    newest = select(trajectories.c.created_at).where(trajectories.c.run_id == run_id)
    newest_first = newest.order_by(trajectories.c.trajectory_id.desc()).limit(_NEWEST).subquery()
    in_the_last_minute = select(func.count()).where(newest_first.c.created_at > func.now() - _MINUTE)
    return (connection.scalar(in_the_last_minute) or 0) / 60


def _queues(connection: Connection, run_id: str) -> Queues:
    open_orders = (issues.c.run_id == run_id) & (issues.c.state == "in_flight")
    age = func.extract("epoch", func.now() - func.min(issues.c.issued_at))
    orders = connection.execute(select(func.count(), age).where(open_orders)).one()
    untrained = (batches.c.run_id == run_id) & batches.c.trained_step.is_(None)
    unissued = (evaluation_requests.c.run_id == run_id) & evaluation_requests.c.issued_at.is_(None)
    return Queues(
        prompts_in_flight=orders[0],
        oldest_prompt_seconds=orders[1],
        batches_in_flight=connection.scalar(select(func.count()).select_from(batches).where(untrained)) or 0,
        evaluations_waiting=connection.scalar(select(func.count()).select_from(evaluation_requests).where(unissued))
        or 0,
        dead_letters=connection.scalar(
            select(func.count()).select_from(dead_letters).where(dead_letters.c.run_id == run_id)
        )
        or 0,
    )


def _buffer(run: Row[Any] | None) -> BufferView:
    status = {} if run is None else run.status
    return BufferView(
        trajectories=status.get("trajectories", 0),
        blocked=status.get("blocked"),
        silent_seconds=None if run is None else run.silent_seconds,
    )


def _ledger(connection: Connection, run_id: str) -> LedgerView:
    total = func.coalesce
    names = ("stored", "duplicates", "dead_lettered", "expired")
    in_flight = func.sum(issues.c.completions).filter(issues.c.state == "in_flight")
    query = select(
        total(func.sum(issues.c.completions), 0).label("issued"),
        total(in_flight, 0).label("in_flight"),
        *(total(func.sum(issues.c[name]), 0).label(name) for name in names),
    ).where(issues.c.run_id == run_id, issues.c.purpose == "train")
    row = connection.execute(query).one()._mapping
    accounted = sum(row[name] for name in (*names, "in_flight"))
    return LedgerView(**row, balanced=accounted == row["issued"])
