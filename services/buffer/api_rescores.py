"""Re-scoring over the API: a task's stored trajectories through its scorers again, perhaps with a new reward.

A new reward is the task's from that moment on; what is stored is brought up to it by the buffer (rescoring.py).
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import Response
from pydantic import Field, ValidationError
from sqlalchemy import Connection, Row, Select, func, select, update
from sqlalchemy.dialects.postgresql import insert

from services.buffer.api_body import Raw, Reader
from services.buffer.api_context import Context, Shared
from services.buffer.api_faults import FieldError, body_errors, shown
from services.buffer.api_idempotency import Answer, OnlyOnce
from services.buffer.api_paging import RequestPage, page
from services.buffer.api_permission import Permitted
from services.buffer.api_progress import find_row
from services.buffer.api_request_views import RescoreView
from services.buffer.api_scorers import prompt_faults, task_faults
from services.buffer.api_tasks import Name
from services.buffer.api_views import Listing
from services.buffer.problems import Problem
from services.buffer.request_tables import rescored, rescores
from services.buffer.rescoring import Chosen
from services.buffer.tables import prompts, tasks
from tba_common.tasks import Combination, ScorerTerm, Task

router: Final = APIRouter(prefix="/v1", tags=["re-scoring"])
RescoreId = Annotated[int, Path(ge=0, lt=2**63)]


class RescoreBody(Chosen):
    """Which trajectories, and a new reward if they are to get one; without any field, all of them as they are."""

    reward: tuple[ScorerTerm, ...] | None = Field(
        default=None, min_length=1, max_length=16, description="the task's reward from now on; null: as it is"
    )
    combination: Combination | None = Field(default=None, description="the task's from now on; null: as it is")
    requested_by: str = Field(
        default="api", min_length=1, max_length=200, description="who asks, for the audit", examples=["ada"]
    )
    min_version: int | None = Field(default=None, ge=0, lt=2**31)
    max_version: int | None = Field(default=None, ge=0, lt=2**31)
    limit: int | None = Field(default=None, ge=1, lt=2**31, description="at most so many trajectories")


_RESCORE: Final = Reader(RescoreBody)


def _rescore_body(raw: Raw) -> RescoreBody:
    return _RESCORE.json(raw) if raw.content else RescoreBody()


@router.post(
    "/tasks/{name}/rescore", operation_id="rescoreTask", status_code=HTTPStatus.ACCEPTED, response_model=RescoreView
)
def rescore_task(
    once: OnlyOnce,
    context: Shared,
    permission: Permitted,
    name: Name,
    body: Annotated[RescoreBody, Depends(_rescore_body)],
) -> Response:
    """Score stored trajectories again, without generating anything; a new reward is adopted by the task at once."""

    def work(connection: Connection) -> Answer:
        row = find_row(connection, context.run_id, name)
        permission.need(row.spec["family"])
        task = _adopted(context, row.spec, body)
        if body.reward is not None or body.combination is not None:
            _see_that_its_prompts_fit(connection, row.task_id, task)
            adopted = {"spec": task.model_dump(mode="json")}
            connection.execute(update(tasks).where(tasks.c.task_id == row.task_id).values(adopted))
        rescore_id = _insert(connection, row, task, body)
        view = _find(connection, context.run_id, rescore_id)
        return Answer(HTTPStatus.ACCEPTED, view, location=f"/v1/rescores/{rescore_id}")

    return once.answer(work)


@router.get("/tasks/{name}/rescores", operation_id="listRescores")
def list_rescores(context: Shared, name: Name, asked: Annotated[RequestPage, Query()]) -> Listing[RescoreView]:
    """List the re-scorings of a task, newest first, with how far each has come."""
    with context.engine.connect() as connection:
        task_id = find_row(connection, context.run_id, name).task_id
        query = _with_progress(context.run_id).where(rescores.c.task_id == task_id)
        if asked.after is not None:
            query = query.where(rescores.c.rescore_id < asked.after)
        rows = connection.execute(query.order_by(rescores.c.rescore_id.desc()).limit(asked.limit + 1)).all()
    return page(list(map(_view, rows)), [str(row.rescore_id) for row in rows], asked.limit)


@router.get("/rescores/{rescore_id}", operation_id="getRescore")
def get_rescore(context: Shared, rescore_id: RescoreId) -> RescoreView:
    """Show how far a re-scoring has come."""
    with context.engine.connect() as connection:
        return _find(connection, context.run_id, rescore_id)


def _adopted(context: Context, spec: dict[str, Any], body: RescoreBody) -> Task:
    """The task as it will be.

    Raises:
        Problem: its reward does not fit, or names scorers that are not deployed here.
    """
    changes = body.model_dump(mode="json", include={"reward", "combination"}, exclude_none=True)
    try:
        task = Task.model_validate({**spec, **changes})
    except ValidationError as error:
        faults = body_errors(error.errors(include_url=False), Task.model_json_schema())
        raise Problem("invalid-request", *faults) from error
    if faults := list(task_faults(task, context.settings.scorers)):
        raise Problem("invalid-request", *faults)
    return task


def _see_that_its_prompts_fit(connection: Connection, task_id: int, task: Task) -> None:
    query = select(prompts.c.prompt_id, prompts.c.split, prompts.c.reference, prompts.c.metadata)
    some = query.where(prompts.c.task_id == task_id).execution_options(yield_per=1_000)
    with connection.execute(some) as rows:
        for row in rows:
            reward = (row.split == "eval" and task.evaluation.reward) or task.reward
            for fault in prompt_faults(reward, row.reference, row.metadata):
                expected = f"a reward that its prompts fit: prompt {row.prompt_id} needs {fault.expected}"
                raise Problem("invalid-request", FieldError(field="/reward", expected=expected, got=fault.got))


def _insert(connection: Connection, row: Row[Any], task: Task, body: RescoreBody) -> int:
    spec = task.model_dump(mode="json")
    chosen = body.model_dump(mode="json", include=set(Chosen.model_fields))
    values = {"run_id": row.run_id, "task_id": row.task_id, "requested_by": body.requested_by, "chosen": chosen}
    statement = insert(rescores).values(**values, reward=spec["reward"], combination=spec["combination"])
    rescore_id = connection.scalar(statement.on_conflict_do_nothing().returning(rescores.c.rescore_id))
    if rescore_id is None:
        expected = "a task that is not being scored again"
        raise Problem("rescore-exists", FieldError(field="path:name", expected=expected, got=shown(row.name)))
    return int(rescore_id)


def _find(connection: Connection, run_id: str, rescore_id: int) -> RescoreView:
    row = connection.execute(_with_progress(run_id).where(rescores.c.rescore_id == rescore_id)).one_or_none()
    if row is None:
        fault = FieldError(field="path:rescore_id", expected="the id of a re-scoring", got=str(rescore_id))
        raise Problem("not-found", fault)
    return _view(row)


def _with_progress(run_id: str) -> Select[Any]:
    is_done = rescored.c.new_reward.is_not(None)
    done = (
        select(
            func.count().filter(is_done).label("rescored"),
            func.count().filter(rescored.c.fault.is_not(None)).label("failed"),
            func.count().filter(rescored.c.new_reward != rescored.c.old_reward).label("changed"),
            func.avg(rescored.c.old_reward).filter(is_done).label("mean_old_reward"),
            func.avg(rescored.c.new_reward).label("mean_new_reward"),
        )
        .where(rescored.c.rescore_id == rescores.c.rescore_id)
        .lateral()
    )
    return (
        select(rescores, tasks.c.name.label("task"), done)
        .join(tasks, tasks.c.task_id == rescores.c.task_id)
        .join(done, rescores.c.rescore_id.is_not(None))
        .where(rescores.c.run_id == run_id)
    )


def _view(row: Row[Any]) -> RescoreView:
    state = "done" if row.closed_at is not None else "waiting" if row.total is None else "running"
    return RescoreView.model_validate({**row._mapping, "state": state})
