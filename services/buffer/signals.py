"""What decides how many generators there should be, read from the rows: who waits, what is on its way, what is ahead.

Only reads, and only what the other files wrote anyway; the law that judges it is the autoscaler's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, func, select

from services.buffer.tables import issues, runs, steps, tasks

_STEPS: Final = 64
_WINDOW_SECONDS: Final = 120.0
_LEAST_STEPS: Final = 4  # a slow learner is judged by this many, however long they take


class Signals(BaseModel):
    """The autoscaler's view of the line. Seconds, and trajectories a second."""

    model_config = ConfigDict(frozen=True)

    age_seconds: float = Field(description="since the buffer last said anything")
    tasks_active: int
    wait_ratio: float | None = Field(
        description="share of the last minutes that the learner waited for data; null before it could ever train"
    )
    step_seconds: float | None = Field(description="of computing one step, without the waiting")
    batch_trajectories: int | None = Field(description="trajectories in one step")
    samples_per_insert: float = Field(description="most draws of a trajectory, on average")
    trajectories_per_second: float = Field(description="that came back in the last minute")
    fresh_steps: float = Field(description="steps that what came back and was not drawn yet is good for")
    stock_steps: float = Field(description="steps that may be taken before samples_per_insert asks for more")
    staleness_versions: float | None = Field(description="mean of what was trained lately")
    admission_capacity: int = Field(description="groups that may be in flight before those made now would be too old")
    in_flight_prompts: int
    in_flight_completions: int


@dataclass(frozen=True, slots=True)
class StepTime:
    """When a step ended, and how long its computing took; seconds of one clock."""

    ended_at: float
    seconds: float


def wait_ratio(recent: Sequence[StepTime], now: float) -> float | None:
    """Return the share of the last minutes that the learner did not compute; None without a step.

    Since the newest step it counts as computing for as long as a step takes, and as waiting from then on.
    """
    if not recent:
        return None
    newest_first = sorted(recent, key=lambda step: -step.ended_at)
    usual = sum(step.seconds for step in newest_first) / len(newest_first)
    window = max(_WINDOW_SECONDS, _LEAST_STEPS * usual)
    first = max(now - window, newest_first[-1].ended_at - newest_first[-1].seconds)
    busy = min(usual, now - newest_first[0].ended_at)
    busy += sum(max(0.0, step.ended_at - max(first, step.ended_at - step.seconds)) for step in newest_first)
    return min(1.0, max(0.0, 1.0 - busy / max(now - first, 1e-9)))


def read_signals(connection: Connection, run_id: str) -> Signals | None:
    """Return the signals of a run; None before its buffer has said anything that they are made of."""
    silent = func.extract("epoch", func.clock_timestamp() - runs.c.status_at).label("silent_seconds")
    run = connection.execute(select(runs.c.status, silent).where(runs.c.run_id == run_id)).one_or_none()
    if run is None or run.silent_seconds is None or "samples_per_insert" not in run.status:
        return None
    said, reports = run.status, _recent_steps(connection, run_id)
    active = (tasks.c.run_id == run_id) & (tasks.c.state == "active")
    in_flight = (issues.c.run_id == run_id) & (issues.c.state == "in_flight")
    ordered = connection.execute(
        select(func.count(), func.coalesce(func.sum(issues.c.completions), 0)).where(in_flight)
    ).one()
    ages = [(int(versions), count) for versions, count in said["staleness"].items()]
    starved = said["blocked"] not in (None, "in_flight")
    ahead = said["samples_per_insert"] * said["inserts"] - said["samples"]
    waited = wait_ratio([StepTime(at.timestamp(), report["step_seconds"]) for at, report in reports], _now(connection))
    return Signals(
        age_seconds=float(run.silent_seconds),
        tasks_active=connection.scalar(select(func.count()).where(active)) or 0,
        wait_ratio=1.0 if waited is None and starved else waited,
        step_seconds=_mean([report["step_seconds"] for _, report in reports]),
        batch_trajectories=reports[0][1]["trajectories"] if reports else None,
        samples_per_insert=said["samples_per_insert"],
        trajectories_per_second=said["trajectories_per_minute"] / 60,
        fresh_steps=said["undrawn_groups"] / said["groups_per_batch"],
        stock_steps=0.0 if starved or not reports else ahead / reports[0][1]["trajectories"],
        staleness_versions=sum(v * count for v, count in ages) / sum(c for _, c in ages) if ages else None,
        admission_capacity=said["credits"] + sum(said["in_flight"].values()),
        in_flight_prompts=ordered[0],
        in_flight_completions=ordered[1],
    )


def _recent_steps(connection: Connection, run_id: str) -> list[tuple[datetime, dict[str, Any]]]:
    query = select(steps.c.created_at, steps.c.report).where(steps.c.run_id == run_id)
    return [
        (row.created_at, row.report) for row in connection.execute(query.order_by(steps.c.step.desc()).limit(_STEPS))
    ]


def _now(connection: Connection) -> float:
    return float(connection.scalar(select(func.extract("epoch", func.clock_timestamp()))) or 0.0)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
