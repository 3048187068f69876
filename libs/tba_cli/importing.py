"""From the rows of a data set to the prompts of a task: validated as a whole, then posted in batches.

Every prompt has a key, so the same import may be run again, or go on after it was broken off, and adds nothing twice.
A text that is held out is never trained on, even where a data set has it in both of its splits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import ValidationError

from tba_cli.dataset_rows import Row
from tba_cli.errors import ApiError, BadInput
from tba_cli.recipes import Columns
from tba_common.tasks import PromptSpec, Task

if TYPE_CHECKING:
    from tba_cli.client import Client

_FAULTS_SHOWN: Final = 20
_GOT_CHARACTERS: Final = 60
_TASK_EXISTS: Final = ":task-exists"
Split = Literal["train", "eval"]


def prompts_of(rows: Iterable[Row], columns: Columns, split: Split) -> list[PromptSpec]:
    """Map every row to a prompt.

    Raises:
        BadInput: rows that are no prompts, each with its line, field, what was expected and what came; or no row.
    """
    prompts: list[PromptSpec] = []
    faults: list[str] = []
    for row in rows:
        try:
            prompts.append(_prompt(row, columns, split))
        except BadInput as fault:
            faults.append(str(fault))
    if faults:
        more = [f"... and {len(faults) - _FAULTS_SHOWN} more"] if len(faults) > _FAULTS_SHOWN else []
        counted = f"{len(faults)} of {len(faults) + len(prompts)} rows are no prompts; nothing was posted"
        raise BadInput("\n".join([counted, *faults[:_FAULTS_SHOWN], *more]))
    if not prompts:
        raise BadInput("expected at least one row, got none")
    return prompts


def without_repetitions(train: Sequence[PromptSpec], held_out: Sequence[PromptSpec]) -> list[PromptSpec]:
    """Every prompt once, those held out first, and none of their texts among the others."""
    apart = {prompt.key: prompt for prompt in held_out}
    texts = {prompt.text for prompt in held_out}
    trained = {prompt.key: prompt for prompt in train if prompt.text not in texts}
    return [*apart.values(), *(prompt for key, prompt in trained.items() if key not in apart)]


def post(
    client: Client, task: Task, prompts: Sequence[PromptSpec], *, at_once: int, progress: Callable[[int], None]
) -> int:
    """Post the task and its prompts, or go on where an import of the same task was broken off.

    `progress` is called with the number of prompts posted after every batch of `at_once`. Returns how many are new.

    Raises:
        BadInput: another task has this name.
    """
    batches = [prompts[i : i + at_once] for i in range(0, len(prompts), at_once)]
    created = posted = 0
    if _begin(client, task, batches[0]):
        created = posted = len(batches[0])
        progress(posted)
    for batch in batches[1 if posted else 0 :]:
        created += sum(prompt.created for prompt in client.add_prompts(task.name, batch))
        posted += len(batch)
        progress(posted)
    return created


def _begin(client: Client, task: Task, first: Sequence[PromptSpec]) -> bool:
    """Post the task with its first prompts; False where it is there already."""
    try:
        client.post_task(task, first)
    except ApiError as error:
        if not error.problem.type.endswith(_TASK_EXISTS):
            raise
        _same(client.task(task.name).spec, task)
        return False
    return True


def _same(there: Task, wanted: Task) -> None:
    fields = [name for name in Task.model_fields if getattr(there, name) != getattr(wanted, name)]
    if fields:
        raise BadInput(
            f"task {wanted.name} is there already and differs in {', '.join(fields)}: expected the same, or another "
            f"--name; got {_shown(getattr(wanted, fields[0]))} where it has {_shown(getattr(there, fields[0]))}"
        )


def _prompt(row: Row, columns: Columns, split: Split) -> PromptSpec:
    text = _text(row, columns.text)
    reference = _text(row, columns.reference) if row.fields.get(columns.reference) is not None else None
    key = _digest(text, reference) if columns.key is None else _text(row, columns.key)
    metadata = {name: _column(row, name) for name in columns.metadata}
    try:
        return PromptSpec(text=text, reference=reference, key=key, split=split, metadata=metadata)
    except ValidationError as error:
        fault = error.errors()[0]
        column = getattr(columns, str(fault["loc"][0]))
        message = f"{row.place}, field {column}: expected {fault['msg'].lower()}, got {_shown(fault['input'])}"
        raise BadInput(message) from error


def _text(row: Row, column: str) -> str:
    value = _column(row, column)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    raise BadInput(f"{row.place}, field {column}: expected a text or a number, got {_shown(value)}")


def _column(row: Row, column: str) -> Any:
    if column not in row.fields:
        got = ", ".join(row.fields) or "none"
        raise BadInput(f"{row.place}, field {column}: expected among its fields, got {got}")
    return row.fields[column]


def _digest(text: str, reference: str | None) -> str:
    return hashlib.sha256(json.dumps([text, reference]).encode()).hexdigest()[:32]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _GOT_CHARACTERS else f"{text[:_GOT_CHARACTERS]}..."
