"""Seeds: known answers to prompts of a task, scored and stored as if the policy had written them.

Trajectory Balance learns from any sampler's answers, so a run may start from attacks or solutions that people know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from pydantic import Field
from sqlalchemy import Connection, func, insert, select

from services.buffer.api_body import JSON_TYPE, NDJSON_TYPE, Raw, Reader, expect_type
from services.buffer.api_context import Shared
from services.buffer.api_faults import FieldError, shown
from services.buffer.api_idempotency import Answer, OnlyOnce
from services.buffer.api_permission import Permitted
from services.buffer.api_progress import find_row
from services.buffer.api_prompts import read_lines
from services.buffer.api_request_views import SeedsView
from services.buffer.api_tasks import Name
from services.buffer.problems import Problem
from services.buffer.request_tables import seeds
from services.buffer.tables import prompts
from tba_common.tasks import MAX_TEXT_CHARACTERS, Frozen

router: Final = APIRouter(prefix="/v1/tasks", tags=["tasks"])
MAX_SEEDS: Final = 10_000


class SeedSpec(Frozen):
    """One known answer, and which training prompt it answers: by text, by key, or the task's only one."""

    answer: str = Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)
    prompt: str | None = Field(default=None, min_length=1, max_length=MAX_TEXT_CHARACTERS, description="its text")
    key: str | None = Field(default=None, min_length=1, max_length=200, description="the client's id of the prompt")


SeedList = Annotated[tuple[SeedSpec, ...], Field(min_length=1, max_length=MAX_SEEDS)]
_LIST: Final[Reader[tuple[SeedSpec, ...]]] = Reader(SeedList)
_ONE: Final = Reader(SeedSpec)


def _seed_list(raw: Raw) -> tuple[SeedSpec, ...]:
    expect_type(raw, JSON_TYPE, NDJSON_TYPE)
    return _LIST.json(raw) if raw.media_type == JSON_TYPE else read_lines(raw, _ONE, MAX_SEEDS)


@router.post("/{name}/seeds", operation_id="seedTask", status_code=HTTPStatus.ACCEPTED, response_model=SeedsView)
def seed_task(
    once: OnlyOnce,
    context: Shared,
    permission: Permitted,
    name: Name,
    specs: Annotated[tuple[SeedSpec, ...], Depends(_seed_list)],
) -> Response:
    """Give known answers; they enter the buffer once they are tokenised and scored. All are taken, or none."""

    def work(connection: Connection) -> Answer:
        task = find_row(connection, context.run_id, name)
        permission.need(task.spec["family"])
        prompt_ids = _prompt_ids(connection, task.task_id, specs)
        rows = [
            {"run_id": task.run_id, "task_id": task.task_id, "prompt_id": prompt_id, "text": spec.answer}
            for spec, prompt_id in zip(specs, prompt_ids, strict=True)
        ]
        connection.execute(insert(seeds), rows)
        return Answer(HTTPStatus.ACCEPTED, SeedsView(task=name, accepted=len(rows)))

    return once.answer(work)


def _prompt_ids(connection: Connection, task_id: int, specs: Sequence[SeedSpec]) -> list[int]:
    """Find the training prompt that each seed answers.

    Raises:
        Problem: there is none, or a seed names none and the task has several.
    """
    by_text = _known(connection, task_id, "text", (spec.prompt for spec in specs))
    by_key = _known(connection, task_id, "key", (spec.key for spec in specs))
    only = _only_one(connection, task_id) if any(s.prompt is None and s.key is None for s in specs) else None
    found, faults = [], []
    for index, spec in enumerate(specs):
        if spec.prompt is not None and spec.key is not None:
            faults.append(FieldError(field=f"/{index}/prompt", expected="at most one of prompt and key", got="both"))
        elif spec.key is not None:
            found.append(by_key.get(spec.key))
        else:
            found.append(only if spec.prompt is None else by_text.get(spec.prompt))
        if not faults and found[-1] is None:
            faults.append(_unknown(index, spec))
    if faults:
        raise Problem("invalid-request", *faults)
    return [prompt_id for prompt_id in found if prompt_id is not None]


def _unknown(index: int, spec: SeedSpec) -> FieldError:
    if spec.key is not None:
        return FieldError(field=f"/{index}/key", expected="the key of a training prompt", got=shown(spec.key))
    if spec.prompt is not None:
        return FieldError(field=f"/{index}/prompt", expected="the text of a training prompt", got=shown(spec.prompt))
    expected = "the text of a training prompt: the task does not have exactly one"
    return FieldError(field=f"/{index}/prompt", expected=expected, got="nothing")


def _known(connection: Connection, task_id: int, column: str, values: Iterable[str | None]) -> dict[str, int]:
    named = sorted({value for value in values if value is not None})
    of_task = (prompts.c.task_id == task_id) & (prompts.c.split == "train")
    query = select(prompts.c[column], prompts.c.prompt_id).where(of_task, prompts.c[column] == func.any(named))
    return {row[0]: row.prompt_id for row in connection.execute(query)} if named else {}


def _only_one(connection: Connection, task_id: int) -> int | None:
    of_task = (prompts.c.task_id == task_id) & (prompts.c.split == "train")
    found = connection.scalars(select(prompts.c.prompt_id).where(of_task).limit(2)).all()
    return int(found[0]) if len(found) == 1 else None
