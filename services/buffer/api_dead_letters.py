"""Dead letters for people: look, replay after the fix, or drop. The buffer does the replaying (replays.py)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response
from sqlalchemy import ColumnElement, Connection, Row, Select, case, delete, func, or_, select, update

from services.buffer.api_context import Shared
from services.buffer.api_dead_bodies import read_body
from services.buffer.api_faults import FieldError, shown
from services.buffer.api_idempotency import Answer, OnlyOnce
from services.buffer.api_paging import DeadLetterPage, page
from services.buffer.api_permission import Permission, Permitted
from services.buffer.api_progress import family_of
from services.buffer.api_request_views import DeadLetterDetail, DeadLetterView
from services.buffer.api_views import Listing
from services.buffer.problems import Problem
from services.buffer.replays import obstacle
from services.buffer.tables import dead_letters, issues, tasks

router: Final = APIRouter(prefix="/v1/dead-letters", tags=["dead letters"])
DeadLetterId = Annotated[int, Path(ge=0, lt=2**63)]

_REPLAY: Final = case(
    (dead_letters.c.replay_fault.is_not(None), "refused"),
    (dead_letters.c.replayed_at.is_not(None), "sent"),
    (dead_letters.c.replay_asked_at.is_not(None), "asked"),
    else_="none",
).label("replay")


@router.get("", operation_id="listDeadLetters")
def list_dead_letters(
    context: Shared, permission: Permitted, asked: Annotated[DeadLetterPage, Query()]
) -> Listing[DeadLetterView]:
    """List the dead letters, newest first, without their bodies; those of red-team tasks to who may see them."""
    query = _chosen(_with_orders(context.run_id), asked)
    if asked.task is not None:
        with context.engine.connect() as connection:
            permission.need(family_of(connection, context.run_id, asked.task))
    if not permission.redteam:
        query = query.where(_is_ordinary(context.run_id, permission))
    newest_first = query.order_by(dead_letters.c.dead_letter_id.desc()).limit(asked.limit + 1)
    with context.engine.connect() as connection:
        rows = connection.execute(newest_first).all()
    views = [DeadLetterView.model_validate(row, from_attributes=True) for row in rows]
    return page(views, [str(row.dead_letter_id) for row in rows], asked.limit)


@router.get("/{dead_letter_id}", operation_id="getDeadLetter")
def get_dead_letter(context: Shared, permission: Permitted, dead_letter_id: DeadLetterId) -> DeadLetterDetail:
    """Show one dead letter with its body, decoded where it decodes."""
    with context.engine.connect() as connection:
        row = _find(connection, context.run_id, dead_letter_id)
        _see_that_it_may_be_read(connection, context.run_id, row, permission)
    return DeadLetterDetail(**row._mapping, size_bytes=len(row.raw), **read_body(row.schema_header, row.raw))


@router.post(
    "/{dead_letter_id}/replay",
    operation_id="replayDeadLetter",
    status_code=HTTPStatus.ACCEPTED,
    response_model=DeadLetterView,
)
def replay_dead_letter(
    once: OnlyOnce, context: Shared, permission: Permitted, dead_letter_id: DeadLetterId
) -> Response:
    """Open its order again and send its bytes to where they came from; asking twice replays once."""

    def work(connection: Connection) -> Answer:
        letter = _find(connection, context.run_id, dead_letter_id, for_update=True)
        permission.need(_family(letter))
        if letter.replay in ("none", "refused"):
            _see_that_it_can_be_replayed(connection, letter)
            asked = {"replay_asked_at": func.now(), "replay_fault": None}
            mine = update(dead_letters).where(dead_letters.c.dead_letter_id == dead_letter_id)
            connection.execute(mine.values(asked))
            letter = _find(connection, context.run_id, dead_letter_id)
        return Answer(HTTPStatus.ACCEPTED, DeadLetterView.model_validate(letter, from_attributes=True))

    return once.answer(work)


@router.delete("/{dead_letter_id}", operation_id="dropDeadLetter", status_code=HTTPStatus.NO_CONTENT)
def drop_dead_letter(once: OnlyOnce, context: Shared, permission: Permitted, dead_letter_id: DeadLetterId) -> Response:
    """Forget a dead letter. How its order ended stays in the ledger."""

    def work(connection: Connection) -> Answer:
        letter = _find(connection, context.run_id, dead_letter_id, for_update=True)
        permission.need(_family(letter))
        if letter.replay == "asked":
            expected = "a dead letter that is not about to be replayed"
            raise Problem("not-replayable", FieldError(field="path:dead_letter_id", expected=expected, got="asked"))
        connection.execute(delete(dead_letters).where(dead_letters.c.dead_letter_id == dead_letter_id))
        return Answer(HTTPStatus.NO_CONTENT)

    return once.answer(work)


def _with_orders(run_id: str) -> Select[Any]:
    columns = [column for column in dead_letters.c if column.name != "body"]
    return (
        select(*columns, _REPLAY, tasks.c.name.label("task"), issues.c.purpose)
        .outerjoin(issues, issues.c.issue_id == dead_letters.c.issue_id)
        .outerjoin(tasks, tasks.c.task_id == issues.c.task_id)
        .where(dead_letters.c.run_id == run_id)
    )


def _chosen(query: Select[Any], asked: DeadLetterPage) -> Select[Any]:
    if asked.service is not None:
        query = query.where(dead_letters.c.service == asked.service)
    if asked.task is not None:
        query = query.where(tasks.c.name == asked.task)
    if asked.reason is not None:
        query = query.where(dead_letters.c.reason.icontains(asked.reason, autoescape=True))
    if asked.after is not None:
        query = query.where(dead_letters.c.dead_letter_id < asked.after)
    return query


def _find(connection: Connection, run_id: str, dead_letter_id: int, *, for_update: bool = False) -> Row[Any]:
    columns = (dead_letters.c.body.label("raw"), issues.c.issue_id.label("order_id"), tasks.c.spec)
    query = _with_orders(run_id).add_columns(*columns).where(dead_letters.c.dead_letter_id == dead_letter_id)
    row = connection.execute(query.with_for_update(of=dead_letters) if for_update else query).one_or_none()
    if row is None:
        fault = FieldError(field="path:dead_letter_id", expected="the id of a dead letter", got=str(dead_letter_id))
        raise Problem("not-found", fault)
    return row


def _see_that_it_may_be_read(connection: Connection, run_id: str, letter: Row[Any], permission: Permission) -> None:
    """A body of a red-team task needs its permission; so does one of an unknown task, where there are such tasks."""
    if not permission.hides(letter.spec) or (letter.order_id is not None and letter.spec is None):
        return
    if letter.spec is not None or connection.execute(_redteam_tasks(run_id).limit(1)).first() is not None:
        permission.need("redteam")


def _is_ordinary(run_id: str, permission: Permission) -> ColumnElement[bool]:
    """The letters whose reason may be shown to everybody.

    A reason may quote what it is about, except that of a message that did not decode (codec.py): such a letter says
    of no order. One that names an order which is not here may be of a red-team task, where there are any.
    """
    has_no_task = tasks.c.task_id.is_(None)
    quotes_nothing = dead_letters.c.issue_id.is_(None)
    is_of_known_order = issues.c.issue_id.is_not(None)
    return or_(
        permission.visible(),
        has_no_task & or_(quotes_nothing, is_of_known_order, ~_redteam_tasks(run_id).exists()),
    )


def _redteam_tasks(run_id: str) -> Select[Any]:
    guarded = tasks.alias()
    return select(guarded.c.task_id).where(guarded.c.run_id == run_id, guarded.c.spec["family"].astext == "redteam")


def _family(letter: Row[Any]) -> str | None:
    return None if letter.spec is None else str(letter.spec["family"])


def _see_that_it_can_be_replayed(connection: Connection, letter: Row[Any]) -> None:
    issue = connection.execute(select(issues).where(issues.c.issue_id == letter.issue_id)).one_or_none()
    stored = select(dead_letters).where(dead_letters.c.dead_letter_id == letter.dead_letter_id)
    if (expected := obstacle(connection.execute(stored).one(), issue)) is not None:
        got = shown(letter.dead_letter_id)
        raise Problem("not-replayable", FieldError(field="path:dead_letter_id", expected=expected, got=got))
