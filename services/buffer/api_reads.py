"""The two curves of a run: its optimiser steps, and its evaluations on held-out prompts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from sqlalchemy import Select, case, func, select, tuple_

from services.buffer.api_context import Shared
from services.buffer.api_paging import EvaluationPage, StepPage, page
from services.buffer.api_views import EvaluationView, Listing, StepView
from services.buffer.evaluation_figures import Figures, figures
from services.buffer.tables import evaluations, issues, steps, tasks

router: Final = APIRouter(prefix="/v1", tags=["run"])


@router.get("/steps", operation_id="listSteps")
def list_steps(context: Shared, asked: Annotated[StepPage, Query()]) -> Listing[StepView]:
    """List the optimiser steps in order."""
    after = (steps.c.run_id == context.run_id) & (steps.c.step > asked.after)
    query = select(steps).where(after).order_by(steps.c.step).limit(asked.limit + 1)
    with context.engine.connect() as connection:
        rows = connection.execute(query).all()
    views = [StepView(**row.report, created_at=row.created_at) for row in rows]
    return page(views, [str(row.step) for row in rows], asked.limit)


@router.get("/evaluations", operation_id="listEvaluations")
def list_evaluations(context: Shared, asked: Annotated[EvaluationPage, Query()]) -> Listing[EvaluationView]:
    """List the evaluations by policy version, then by task."""
    query = _per_version(context.run_id)
    order = tuple_(query.selected_columns.policy_version, query.selected_columns.task_id)
    query = query.where(order > tuple(map(int, asked.after.split(".")))).order_by(*order).limit(asked.limit + 1)
    if asked.task is not None:
        query = query.where(tasks.c.name == asked.task)
    with context.engine.connect() as connection:
        rows = connection.execute(query).all()
        found = figures(connection, context.run_id, [(row.task_id, row.policy_version) for row in rows])
    more = [asdict(found.get((row.task_id, row.policy_version), Figures())) for row in rows]
    views = [EvaluationView(**row._mapping, **figure) for row, figure in zip(rows, more, strict=True)]
    return page(views, [f"{row.policy_version}.{row.task_id}" for row in rows], asked.limit)


def _per_version(run_id: str) -> Select[Any]:
    key = (evaluations.c.task_id, evaluations.c.policy_version)
    scored = (
        select(
            *key,
            func.count().label("n"),
            func.avg(evaluations.c.reward).label("mean_reward"),
            func.avg(case((evaluations.c.reward >= 1, 1.0), else_=0.0)).label("accuracy"),
        )
        .where(evaluations.c.run_id == run_id)
        .group_by(*key)
        .subquery()
    )
    ordered = (
        select(
            issues.c.task_id,
            issues.c.policy_version,
            func.sum(issues.c.completions).label("n_expected"),
            func.sum(issues.c.dead_lettered + issues.c.expired).label("n_lost"),
        )
        .where(issues.c.run_id == run_id, issues.c.purpose == "eval")
        .group_by(issues.c.task_id, issues.c.policy_version)
        .subquery()
    )
    same = (scored.c.task_id == ordered.c.task_id) & (scored.c.policy_version == ordered.c.policy_version)
    return (
        select(
            tasks.c.name.label("task"),
            ordered.c.task_id,
            ordered.c.policy_version,
            ordered.c.n_expected,
            ordered.c.n_lost,
            func.coalesce(scored.c.n, 0).label("n"),
            scored.c.mean_reward,
            scored.c.accuracy,
        )
        .select_from(ordered)
        .join(tasks, tasks.c.task_id == ordered.c.task_id)
        .outerjoin(scored, same)
        .where(tasks.c.state != "deleted")
    )
