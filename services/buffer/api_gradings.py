"""The graders API: is this reward sound, and what is this completion worth, before a task is posted or a token sampled.

A grading is a row that the buffer sends along the line; the request waits for what comes back.
"""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import Response
from pydantic import Field, ValidationError
from sqlalchemy import Connection, Row, or_, select
from sqlalchemy.dialects.postgresql import insert
from starlette.concurrency import run_in_threadpool

from services.buffer.api_body import Raw, Reader
from services.buffer.api_context import Context, Shared
from services.buffer.api_faults import FieldError, body_errors
from services.buffer.api_idempotency import Answer, OnlyOnce
from services.buffer.api_paging import RequestPage, page
from services.buffer.api_permission import Permission, Permitted
from services.buffer.api_progress import find_row
from services.buffer.api_request_views import GradingSummary, GradingView, ValidatedReward
from services.buffer.api_scorers import prompt_faults, task_faults
from services.buffer.api_views import Listing
from services.buffer.gradings import Request
from services.buffer.problems import Problem
from services.buffer.request_tables import gradings
from services.buffer.tables import runs, tasks
from tba_common.tasks import MAX_TEXT_CHARACTERS, TEXT, Combination, Frozen, ScorerTerm, Task, TaskName, stored_task

router: Final = APIRouter(prefix="/v1", tags=["graders"])
GradingId = Annotated[int, Path(ge=0, lt=2**63)]
_LOOK_SECONDS: Final = 0.1
_INLINE: Final = "inline"
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)]


class GraderPrompt(Frozen):
    """The prompt that the completions answer."""

    text: Text
    reference: str | None = Field(default=None, max_length=MAX_TEXT_CHARACTERS)
    metadata: dict[str, Any] = Field(default_factory=dict)


class GraderBody(Frozen):
    """A reward: exactly one of `task`, whose reward it is, and `reward` with its `combination`."""

    task: TaskName | None = None
    reward: tuple[ScorerTerm, ...] | None = Field(default=None, min_length=1, max_length=16)
    combination: Combination = Combination()


class ValidationBody(GraderBody):
    """A reward to look at, perhaps with a prompt that it should be able to judge."""

    prompt: GraderPrompt | None = None


class GradingBody(GraderBody):
    """Completions to grade. They have no tokens: `min_tokens` is left out, and a `reference` cannot score them."""

    prompt: GraderPrompt
    completions: tuple[Text, ...] = Field(min_length=1, max_length=64, examples=[["19", "21"]])
    wait_seconds: float = Field(default=20.0, ge=0, le=60, description="how long to wait for the scorers")


_VALIDATION: Final = Reader(ValidationBody)
_GRADING: Final = Reader(GradingBody)


def _validation_body(raw: Raw) -> ValidationBody:
    return _VALIDATION.json(raw)


def _grading_body(raw: Raw) -> GradingBody:
    return _GRADING.json(raw)


@router.post("/graders:validate", operation_id="validateGrader")
def validate_grader(context: Shared, body: Annotated[ValidationBody, Depends(_validation_body)]) -> ValidatedReward:
    """Say whether a reward is well-formed and its scorers are deployed here; nothing is scored."""
    with context.engine.connect() as connection:
        _, task = _task(connection, context, body)
    _see_that_it_fits(context, task, body.prompt)
    scorers = tuple(term.scorer for term in task.reward)
    return ValidatedReward(reward=task.reward, combination=task.combination, scorers=scorers)


@router.post("/graders:run", operation_id="runGrader", response_model=GradingView)
async def run_grader(
    once: OnlyOnce, context: Shared, permission: Permitted, body: Annotated[GradingBody, Depends(_grading_body)]
) -> Response:
    """Score given completions through a reward and wait for the result. Nothing is stored in the buffer.

    A retry with the same Idempotency-Key waits for the same grading.
    """
    accepted = await run_in_threadpool(once.answer, partial(_accept, context, permission, body))
    grading_id = int(json.loads(bytes(accepted.body))["grading_id"])
    location = f"/v1/gradings/{grading_id}"
    view = await _settled(context, grading_id, body.wait_seconds)
    if view.state == "failed":
        raise Problem("grading-failed", detail=str(view.fault), headers={"Location": location})
    if view.state == "pending":
        expected = f"an answer of the scorers within {body.wait_seconds:g} s"
        fault = FieldError(field="/wait_seconds", expected=expected, got=f"none yet: ask GET {location}")
        raise Problem("grading-not-ready", fault, headers={"Location": location})
    return Response(view.model_dump_json(), media_type="application/json", headers={"Location": location})


@router.get("/gradings", operation_id="listGradings")
def list_gradings(
    context: Shared, permission: Permitted, asked: Annotated[RequestPage, Query()]
) -> Listing[GradingSummary]:
    """List the gradings, newest first; those of red-team tasks to who may see them."""
    query = (
        select(gradings, tasks.c.name.label("task"))
        .outerjoin(tasks, tasks.c.task_id == gradings.c.task_id)
        .where(gradings.c.run_id == context.run_id, or_(gradings.c.task_id.is_(None), permission.visible()))
    )
    if asked.after is not None:
        query = query.where(gradings.c.grading_id < asked.after)
    with context.engine.connect() as connection:
        rows = connection.execute(query.order_by(gradings.c.grading_id.desc()).limit(asked.limit + 1)).all()
    return page(list(map(_summary, rows)), [str(row.grading_id) for row in rows], asked.limit)


@router.get("/gradings/{grading_id}", operation_id="getGrading")
def get_grading(context: Shared, permission: Permitted, grading_id: GradingId) -> GradingView:
    """Show a grading, done or not."""
    with context.engine.connect() as connection:
        return _view(connection, context.run_id, grading_id, permission)


def _task(connection: Connection, context: Context, body: GraderBody) -> tuple[int | None, Task]:
    """The task whose reward is meant, or one made of the body's reward."""
    if (body.task is None) == (body.reward is None):
        got = "neither" if body.task is None else "both"
        raise Problem("invalid-request", FieldError(field="/task", expected="exactly one of task and reward", got=got))
    if body.task is not None:
        row = find_row(connection, context.run_id, body.task)
        return row.task_id, stored_task(row.spec)
    try:
        return None, Task.model_validate({"name": _INLINE, "reward": body.reward, "combination": body.combination})
    except ValidationError as error:
        faults = body_errors(error.errors(include_url=False), Task.model_json_schema())
        raise Problem("invalid-request", *faults) from error


def _see_that_it_fits(context: Context, task: Task, prompt: GraderPrompt | None) -> None:
    faults = list(task_faults(task, context.settings.scorers))
    if prompt is not None and not faults:
        found = prompt_faults(task.reward, prompt.reference, prompt.metadata)
        faults = [fault.model_copy(update={"field": f"/prompt{fault.field}"}) for fault in found]
    if faults:
        raise Problem("invalid-request", *faults)


def _accept(context: Context, permission: Permission, body: GradingBody, connection: Connection) -> Answer:
    task_id, task = _task(connection, context, body)
    permission.need(task.family)
    _see_that_it_fits(context, task, body.prompt)
    asked = Request(
        text=task.template.replace(TEXT, body.prompt.text),
        system=task.system,
        prompt_format=task.prompt_format,
        reference=body.prompt.reference,
        metadata=body.prompt.metadata,
        completions=body.completions,
        sampling=task.sampling,
        reward=task.reward,
        combination=task.combination,
    )
    connection.execute(insert(runs).values(run_id=context.run_id).on_conflict_do_nothing())
    row = insert(gradings).values(run_id=context.run_id, task_id=task_id, request=asked.model_dump(mode="json"))
    grading_id = int(connection.execute(row.returning(gradings.c.grading_id)).scalar_one())
    view = _view(connection, context.run_id, grading_id, permission)
    return Answer(HTTPStatus.ACCEPTED, view, location=f"/v1/gradings/{grading_id}")


async def _settled(context: Context, grading_id: int, wait_seconds: float) -> GradingView:
    """The grading, once it is settled or time has run out. No thread and no connection waits meanwhile."""

    def look() -> GradingView:
        with context.engine.connect() as connection:
            return _view(connection, context.run_id, grading_id)

    until = time.monotonic() + wait_seconds
    while True:
        view = await run_in_threadpool(look)
        if view.state != "pending" or time.monotonic() >= until:
            return view
        await asyncio.sleep(_LOOK_SECONDS)


def _view(connection: Connection, run_id: str, grading_id: int, permission: Permission | None = None) -> GradingView:
    query = (
        select(gradings, tasks.c.name, tasks.c.spec)
        .outerjoin(tasks, tasks.c.task_id == gradings.c.task_id)
        .where(gradings.c.run_id == run_id, gradings.c.grading_id == grading_id)
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        fault = FieldError(field="path:grading_id", expected="the id of a grading", got=str(grading_id))
        raise Problem("not-found", fault)
    if permission is not None and row.spec is not None:
        permission.need(row.spec["family"])
    return GradingView.model_validate(
        {
            "grading_id": row.grading_id,
            "state": _state(row),
            "task": row.name,
            "completions": row.result or (),
            "fault": row.fault,
            "created_at": row.created_at,
            "settled_at": row.settled_at,
        }
    )


def _summary(row: Row[Any]) -> GradingSummary:
    rewards = [completion["reward"] for completion in row.result or ()]
    told = {"state": _state(row), "prompt": row.request["text"], "rewards": rewards}
    return GradingSummary.model_validate({**row._mapping, **told})


def _state(row: Row[Any]) -> str:
    return "pending" if row.settled_at is None else "done" if row.fault is None else "failed"
