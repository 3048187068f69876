"""Tasks as the API shows them: one query for the rows and how far each has come."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, Row, ScalarSelect, Select, func, select

from services.buffer.api_faults import FieldError, shown
from services.buffer.api_views import Progress, TaskView
from services.buffer.problems import Problem
from services.buffer.tables import issues, prompts, tasks, trajectories
from tba_common.tasks import TaskName, stored_task

_RECENT: Final = 2_000


def list_tasks(connection: Connection, run_id: str, *, after: int, limit: int) -> list[TaskView]:
    """Return the tasks that are not deleted, oldest first."""
    query = _with_progress(run_id).where(tasks.c.task_id > after).order_by(tasks.c.task_id).limit(limit)
    return [_view(row) for row in connection.execute(query)]


def find_task(connection: Connection, run_id: str, name: TaskName) -> TaskView:
    """Return one task with its progress.

    Raises:
        Problem: no task of this name.
    """
    row = connection.execute(_with_progress(run_id).where(tasks.c.name == name)).one_or_none()
    if row is None:
        raise no_such_task(name)
    return _view(row)


def find_row(connection: Connection, run_id: str, name: TaskName) -> Row[Any]:
    """Return the bare row of a task.

    Raises:
        Problem: no task of this name.
    """
    row = connection.execute(select(tasks).where(*_live(run_id), tasks.c.name == name)).one_or_none()
    if row is None:
        raise no_such_task(name)
    return row


def family_of(connection: Connection, run_id: str, name: TaskName) -> str | None:
    """Return the family of a task, deleted ones included; None if none has this name.

    One guarded task guards its name.
    """
    query = select(tasks.c.spec["family"].astext).where(tasks.c.run_id == run_id, tasks.c.name == name)
    families = set(connection.scalars(query))
    return "redteam" if "redteam" in families else next(iter(families), None)


def no_such_task(name: str) -> Problem:
    """The refusal of a name that no live task has."""
    return Problem("not-found", FieldError(field="path:name", expected="the name of a task", got=shown(name)))


def _live(run_id: str) -> tuple[Any, ...]:
    return tasks.c.run_id == run_id, tasks.c.state != "deleted"


def _with_progress(run_id: str) -> Select[Any]:
    newest = (
        select(trajectories.c.task_id, trajectories.c.reward)
        .where(trajectories.c.run_id == run_id)
        .order_by(trajectories.c.trajectory_id.desc())
        .limit(_RECENT)
        .subquery()
    )
    recent = select(newest.c.task_id, func.avg(newest.c.reward).label("mean")).group_by(newest.c.task_id).subquery()
    return (
        select(
            tasks,
            _prompts("train").label("prompts_train"),
            _prompts("eval").label("prompts_eval"),
            _trained(func.count()).label("issues"),
            _trained(func.coalesce(func.sum(issues.c.stored), 0)).label("trajectories"),
            recent.c.mean.label("recent_mean_reward"),
        )
        .outerjoin(recent, recent.c.task_id == tasks.c.task_id)
        .where(*_live(run_id))
    )


def _prompts(split: str) -> ScalarSelect[Any]:
    of_task = (prompts.c.task_id == tasks.c.task_id) & (prompts.c.split == split)
    return select(func.count()).select_from(prompts).where(of_task).scalar_subquery()


def _trained(figure: Any) -> ScalarSelect[Any]:
    of_task = (issues.c.task_id == tasks.c.task_id) & (issues.c.purpose == "train")
    return select(figure).select_from(issues).where(of_task).scalar_subquery()


def _view(row: Row[Any]) -> TaskView:
    return TaskView(
        task_id=row.task_id,
        name=row.name,
        state=row.state,
        created_at=row.created_at,
        spec=stored_task(row.spec),
        progress=Progress.model_validate(row, from_attributes=True),
    )
