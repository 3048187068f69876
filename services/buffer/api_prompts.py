"""More prompts for a live task: a JSON list, or one JSON object a line (NDJSON), up to 10,000 at a time."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from pydantic import Field
from sqlalchemy import Connection

from services.buffer.api_body import JSON_TYPE, NDJSON_TYPE, Raw, RawBody, Reader, expect_type
from services.buffer.api_context import Shared
from services.buffer.api_faults import FieldError
from services.buffer.api_idempotency import Answer, OnlyOnce
from services.buffer.api_intake import MAX_PROMPTS, add_prompts
from services.buffer.api_permission import Permitted
from services.buffer.api_progress import find_row
from services.buffer.api_tasks import Name
from services.buffer.api_views import PostedPrompt, PostedPrompts
from services.buffer.problems import Problem
from tba_common.tasks import PromptSpec, stored_task

T = TypeVar("T")
PromptList = Annotated[tuple[PromptSpec, ...], Field(min_length=1, max_length=MAX_PROMPTS)]

router: Final = APIRouter(prefix="/v1/tasks", tags=["tasks"])
_LIST: Final[Reader[tuple[PromptSpec, ...]]] = Reader(PromptList)
_ONE: Final = Reader(PromptSpec)


def _prompt_list(raw: Raw) -> tuple[PromptSpec, ...]:
    expect_type(raw, JSON_TYPE, NDJSON_TYPE)
    return _LIST.json(raw) if raw.media_type == JSON_TYPE else read_lines(raw, _ONE, MAX_PROMPTS)


@router.post("/{name}/prompts", operation_id="addPrompts", status_code=HTTPStatus.CREATED, response_model=PostedPrompts)
def add_to_task(
    once: OnlyOnce,
    context: Shared,
    permission: Permitted,
    name: Name,
    specs: Annotated[tuple[PromptSpec, ...], Depends(_prompt_list)],
) -> Response:
    """Add prompts; the ids come back in the order of the request. All are added, or none."""

    def work(connection: Connection) -> Answer:
        row = find_row(connection, context.run_id, name)
        permission.need(row.spec["family"])
        added = add_prompts(connection, row.task_id, stored_task(row.spec), specs=specs, field="")
        data = tuple(PostedPrompt.model_validate(prompt, from_attributes=True) for prompt in added)
        return Answer(HTTPStatus.CREATED, PostedPrompts(data=data, created=sum(prompt.created for prompt in added)))

    return once.answer(work)


def read_lines(raw: RawBody, reader: Reader[T], most: int) -> tuple[T, ...]:
    """Read NDJSON, one value a line; empty lines are passed over.

    Raises:
        Problem: no line, more than `most`, or a line that does not fit.
    """
    lines = [line for line in raw.content.split(b"\n") if line.strip()]
    if not 1 <= len(lines) <= most:
        fault = FieldError(field="", expected=f"1 to {most} lines", got=f"{len(lines)} lines")
        raise Problem("invalid-request", fault)
    specs: list[Any] = []
    faults: list[FieldError] = []
    for index, line in enumerate(lines):
        spec, errors = reader.parse(line, prefix=f"/{index}")
        specs.append(spec)
        faults += errors
    if faults:
        raise Problem("invalid-request", *faults)
    return tuple(specs)
