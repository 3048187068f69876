"""Trajectories for people: what the policy wrote, how it was scored, and which steps learnt from it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Path, Query
from sqlalchemy import Select, select

from services.buffer.api_context import Shared
from services.buffer.api_faults import FieldError
from services.buffer.api_lineage import audits_of, draws_of
from services.buffer.api_paging import TrajectoryPage, page
from services.buffer.api_permission import Permitted
from services.buffer.api_progress import family_of
from services.buffer.api_views import Listing, TrajectoryDetail, TrajectoryView
from services.buffer.problems import Problem
from services.buffer.tables import issues, payloads, prompts, tasks, trajectories

router: Final = APIRouter(prefix="/v1/trajectories", tags=["trajectories"])
TrajectoryId = Annotated[int, Path(ge=0, lt=2**63)]


@router.get("", operation_id="listTrajectories")
def list_trajectories(
    context: Shared, permission: Permitted, asked: Annotated[TrajectoryPage, Query()]
) -> Listing[TrajectoryView]:
    """List the trajectories, newest first; those of red-team tasks to who may see them."""
    query = _chosen(_with_texts(context.run_id), asked)
    if asked.task is not None:
        with context.engine.connect() as connection:
            permission.need(family_of(connection, context.run_id, asked.task))
    query = query.where(permission.visible())
    newest_first = query.order_by(trajectories.c.trajectory_id.desc()).limit(asked.limit + 1)
    with context.engine.connect() as connection:
        rows = connection.execute(newest_first).all()
    views = [TrajectoryView.model_validate(row, from_attributes=True) for row in rows]
    return page(views, [str(row.trajectory_id) for row in rows], asked.limit)


@router.get("/{trajectory_id}", operation_id="getTrajectory")
def get_trajectory(context: Shared, permission: Permitted, trajectory_id: TrajectoryId) -> TrajectoryDetail:
    """Show one trajectory from its task to the steps that used it: order, versions, scores, draws, re-scorings."""
    lineage = (
        *(prompts.c.reference, prompts.c.metadata.label("prompt_metadata"), trajectories.c.spans, tasks.c.spec),
        *(issues.c.issue_id, issues.c.attempt, issues.c.issued_at),
    )
    query = (
        _with_texts(context.run_id)
        .add_columns(*lineage, payloads.c.token_ids, payloads.c.logprobs)
        .join(issues, issues.c.issue_id == trajectories.c.issue_id)
        .where(trajectories.c.trajectory_id == trajectory_id)
    )
    with context.engine.connect() as connection:
        row = connection.execute(query).mappings().one_or_none()
        if row is None:
            fault = FieldError(field="path:trajectory_id", expected="the id of a trajectory", got=str(trajectory_id))
            raise Problem("not-found", fault)
        permission.need(row["spec"]["family"])
        drawn = draws_of(connection, context.run_id, trajectory_id)
        audits = audits_of(connection, trajectory_id)
    logprobs = np.frombuffer(row["logprobs"], dtype="<f4").tolist()
    packed: dict[str, Any] = {
        "token_ids": tuple(np.frombuffer(row["token_ids"], dtype="<i4").tolist()),
        "logprobs": tuple(value if math.isfinite(value) else None for value in logprobs),
    }
    spans = row["spans"] or [(row["policy_version"], row["tokens"])]
    packed |= {"spans": [{"policy_version": version, "tokens": tokens} for version, tokens in spans]}
    return TrajectoryDetail.model_validate({**row, **packed, "draws": drawn, "rescores": audits})


def _with_texts(run_id: str) -> Select[Any]:
    columns = ("trajectory_id", "prompt_id", "policy_version", "reward", "scores", "tokens")
    sampled = ("finish_reason", "temperature", "top_p", "created_at")
    return (
        select(
            *(trajectories.c[name] for name in (*columns, *sampled)),
            tasks.c.name.label("task"),
            prompts.c.text.label("prompt"),
            payloads.c.text,
        )
        .join(tasks, tasks.c.task_id == trajectories.c.task_id)
        .join(prompts, prompts.c.prompt_id == trajectories.c.prompt_id)
        .join(payloads, payloads.c.trajectory_id == trajectories.c.trajectory_id)
        .where(trajectories.c.run_id == run_id)
    )


def _chosen(query: Select[Any], asked: TrajectoryPage) -> Select[Any]:
    if asked.task is not None:
        query = query.where(tasks.c.name == asked.task)
    if asked.policy_version is not None:
        query = query.where(trajectories.c.policy_version == asked.policy_version)
    if asked.min_reward is not None:
        query = query.where(trajectories.c.reward >= asked.min_reward)
    if asked.max_reward is not None:
        query = query.where(trajectories.c.reward <= asked.max_reward)
    if asked.after is not None:
        query = query.where(trajectories.c.trajectory_id < asked.after)
    return query
