"""Tasks in and out: post, list, pause, resume, delete, evaluate. A task is a row before it is a message.

The buffer's feed reads the rows, so a task that is posted to a live run is picked up without a restart.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Row, func, select, update
from sqlalchemy.dialects.postgresql import insert

from services.buffer.api_body import Raw, Reader
from services.buffer.api_context import Shared
from services.buffer.api_faults import FieldError, shown
from services.buffer.api_idempotency import Answer, OnlyOnce
from services.buffer.api_intake import MAX_PROMPTS, add_file, add_prompts, data_file
from services.buffer.api_paging import TaskPage, page
from services.buffer.api_permission import Permission, Permitted
from services.buffer.api_progress import find_row, find_task, list_tasks
from services.buffer.api_scorers import task_faults
from services.buffer.api_views import EvaluationRequest, Listing, TaskView
from services.buffer.problems import Problem
from services.buffer.request_tables import evaluation_requests
from services.buffer.tables import prompts, runs, tasks
from tba_common.tasks import PromptSpec, Task, TaskName

router: Final = APIRouter(prefix="/v1/tasks", tags=["tasks"])
Name = Annotated[TaskName, Path(description="the task's name")]


class TaskBody(Task):
    """A task and its prompts: exactly one of `prompts` and `prompts_path`."""

    prompts: tuple[PromptSpec, ...] | None = Field(default=None, min_length=1, max_length=MAX_PROMPTS)
    prompts_path: str | None = Field(
        default=None,
        min_length=1,
        max_length=1_000,
        description="a JSONL file beneath the server's data directory, one prompt a line",
    )


class EvaluationBody(BaseModel):
    """Which policy version to evaluate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy_version: int | None = Field(default=None, ge=0, lt=2**31, description="default: the newest")


_TASK: Final = Reader(TaskBody)
_EVALUATION: Final = Reader(EvaluationBody)


def _task_body(raw: Raw, context: Shared, permission: Permitted) -> TaskBody:
    body = _TASK.json(raw)
    if (body.prompts is None) == (body.prompts_path is None):
        got = "neither" if body.prompts is None else "both"
        fault = FieldError(field="/prompts", expected="exactly one of prompts and prompts_path", got=got)
        raise Problem("invalid-request", fault)
    if faults := list(task_faults(body, context.settings.scorers)):
        raise Problem("invalid-request", *faults)
    permission.need(body.family)
    return body


def _evaluation_body(raw: Raw) -> EvaluationBody:
    return _EVALUATION.json(raw) if raw.content else EvaluationBody()


@router.post("", operation_id="createTask", status_code=HTTPStatus.CREATED, response_model=TaskView)
def create_task(once: OnlyOnce, context: Shared, body: Annotated[TaskBody, Depends(_task_body)]) -> Response:
    """Post a task with its prompts; the run starts to train on it at once."""

    def work(connection: Connection) -> Answer:
        task_id = _insert_task(connection, context.run_id, body)
        if body.prompts is not None:
            add_prompts(connection, task_id, body, specs=body.prompts, field="/prompts")
        else:
            add_file(connection, task_id, body, data_file(context.settings.data_directory, str(body.prompts_path)))
        return Answer(
            HTTPStatus.CREATED, find_task(connection, context.run_id, body.name), location=f"/v1/tasks/{body.name}"
        )

    return once.answer(work)


@router.get("", operation_id="listTasks")
def get_tasks(context: Shared, asked: Annotated[TaskPage, Query()]) -> Listing[TaskView]:
    """List the tasks with their progress, oldest first."""
    with context.engine.connect() as connection:
        found = list_tasks(connection, context.run_id, after=asked.after, limit=asked.limit + 1)
    return page(found, [str(task.task_id) for task in found], asked.limit)


@router.get("/{name}", operation_id="getTask")
def get_task(context: Shared, name: Name) -> TaskView:
    """Show one task with its progress."""
    with context.engine.connect() as connection:
        return find_task(connection, context.run_id, name)


@router.post("/{name}/pause", operation_id="pauseTask", response_model=TaskView)
def pause_task(once: OnlyOnce, context: Shared, permission: Permitted, name: Name) -> Response:
    """Order no more completions for this task; what is in flight still arrives."""
    return once.answer(lambda connection: _set_state(connection, context.run_id, permission, name, "paused"))


@router.post("/{name}/resume", operation_id="resumeTask", response_model=TaskView)
def resume_task(once: OnlyOnce, context: Shared, permission: Permitted, name: Name) -> Response:
    """Go on with a paused task."""
    return once.answer(lambda connection: _set_state(connection, context.run_id, permission, name, "active"))


@router.delete("/{name}", operation_id="deleteTask", status_code=HTTPStatus.NO_CONTENT)
def delete_task(once: OnlyOnce, context: Shared, permission: Permitted, name: Name) -> Response:
    """Take a task out of the run for good. Its rows stay for the ledger; its name is free again."""

    def work(connection: Connection) -> Answer:
        row = _find_permitted(connection, context.run_id, permission, name)
        connection.execute(update(tasks).where(tasks.c.task_id == row.task_id).values(state="deleted"))
        return Answer(HTTPStatus.NO_CONTENT)

    return once.answer(work)


@router.post(
    "/{name}/evaluations",
    operation_id="evaluateTask",
    status_code=HTTPStatus.ACCEPTED,
    response_model=EvaluationRequest,
)
def evaluate_task(
    once: OnlyOnce,
    context: Shared,
    permission: Permitted,
    name: Name,
    body: Annotated[EvaluationBody, Depends(_evaluation_body)],
) -> Response:
    """Ask for the held-out prompts to be answered by one policy version, the newest by default."""

    def work(connection: Connection) -> Answer:
        row = _find_permitted(connection, context.run_id, permission, name)
        request = _request_evaluation(connection, row, body.policy_version)
        return Answer(HTTPStatus.ACCEPTED, request, location=f"/v1/evaluations?task={name}")

    return once.answer(work)


def _insert_task(connection: Connection, run_id: str, body: TaskBody) -> int:
    connection.execute(insert(runs).values(run_id=run_id).on_conflict_do_nothing())
    spec = Task.model_validate(body.model_dump(include=set(Task.model_fields))).model_dump(mode="json")
    row = insert(tasks).values(run_id=run_id, name=body.name, spec=spec)
    task_id = connection.scalar(row.on_conflict_do_nothing().returning(tasks.c.task_id))
    if task_id is None:
        fault = FieldError(field="/name", expected="a name that no task of this run has", got=shown(body.name))
        raise Problem("task-exists", fault)
    return int(task_id)


def _find_permitted(connection: Connection, run_id: str, permission: Permission, name: str) -> Row[Any]:
    row = find_row(connection, run_id, name)
    permission.need(row.spec["family"])
    return row


def _set_state(connection: Connection, run_id: str, permission: Permission, name: str, state: str) -> Answer:
    row = _find_permitted(connection, run_id, permission, name)
    connection.execute(
        update(tasks).where(tasks.c.task_id == row.task_id, tasks.c.state != "deleted").values(state=state)
    )
    return Answer(HTTPStatus.OK, find_task(connection, run_id, name))


def _request_evaluation(connection: Connection, task: Any, version: int | None) -> EvaluationRequest:
    newest = connection.scalar(select(runs.c.policy_version).where(runs.c.run_id == task.run_id))
    held_out = select(func.count()).where(prompts.c.task_id == task.task_id, prompts.c.split == "eval")
    count = connection.scalar(held_out.select_from(prompts)) or 0
    if newest is None or newest < 0:
        fault = FieldError(field="/policy_version", expected="a published policy version", got="none published yet")
        raise Problem("not-evaluable", fault)
    if count == 0:
        fault = FieldError(field="path:name", expected="a task with prompts in the eval split", got="none held out")
        raise Problem("not-evaluable", fault)
    chosen = newest if version is None else version
    if chosen > newest:
        fault = FieldError(field="/policy_version", expected=f"at most {newest}, the newest version", got=str(chosen))
        raise Problem("invalid-request", fault)
    row = insert(evaluation_requests).values(run_id=task.run_id, task_id=task.task_id, policy_version=chosen)
    created = connection.scalar(row.on_conflict_do_nothing().returning(evaluation_requests.c.task_id))
    return EvaluationRequest(task=task.name, policy_version=chosen, prompts=count, created=created is not None)
