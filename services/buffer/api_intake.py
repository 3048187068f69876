"""Prompts on their way in: from a request or a JSONL file to rows, each in its split, none of them twice.

A prompt with a client key is added once per task, however often it is posted. The split depends on the text
alone, so a text that is posted again under another key cannot be both trained on and held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Literal

from sqlalchemy import Connection, func, insert, select

from services.buffer.api_body import Reader
from services.buffer.api_faults import FieldError, shown
from services.buffer.api_scorers import prompt_faults
from services.buffer.problems import Problem
from services.buffer.tables import prompts
from tba_common.tasks import PromptSpec, Task

MAX_PROMPTS: Final = 10_000
_ROWS_AT_ONCE: Final = 5_000
_LOCK_CLASS: Final = 0x7BA
_MAX_LINE_BYTES: Final = 1 << 20
_FILE: Final = "/prompts_path"
_PROMPT: Final = Reader(PromptSpec)


@dataclass(frozen=True)
class Added:
    """What became of one posted prompt; not `created`: its key was known already."""

    prompt_id: int
    created: bool
    split: Literal["train", "eval"]


def split_of(spec: PromptSpec, eval_fraction: float) -> Literal["train", "eval"]:
    """Hold out `eval_fraction` of the train prompts, by a hash of the text that is the same on every machine."""
    digest = hashlib.blake2b(spec.text.encode(), digest_size=8).digest()
    return "eval" if int.from_bytes(digest) < eval_fraction * 2**64 else spec.split


def add_prompts(
    connection: Connection, task_id: int, task: Task, *, specs: Sequence[PromptSpec], field: str, first: int = 0
) -> list[Added]:
    """Insert what is new and return every prompt's id, in the order of `specs`.

    Faults are told under the pointer `field`, where `specs` begins at index `first`.

    Raises:
        Problem: a prompt that a scorer of the task could not judge, or a key that names another prompt already.
    """
    if faults := list(_faults(task, specs, field, first)):
        raise Problem("invalid-request", *faults)
    # Two requests with the same new key must not both find it missing. The task's row stays free: the buffer
    # updates it with every batch.
    connection.execute(select(func.pg_advisory_xact_lock(_LOCK_CLASS, task_id % 2**31)))
    stored = _stored(connection, task_id, specs)
    fresh = _fresh(specs, dict(stored), field, first)
    statement = insert(prompts).returning(prompts.c.prompt_id, sort_by_parameter_order=True)
    rows = [{**spec.model_dump(), "task_id": task_id, "split": split_of(spec, task.eval_fraction)} for spec in fresh]
    ids = iter(connection.scalars(statement, rows).all() if rows else ())
    known = {key: row.prompt_id for key, row in stored.items()}
    added = []
    for spec in specs:
        created = spec.key is None or spec.key not in known
        prompt_id = next(ids) if created else known[str(spec.key)]
        if spec.key is not None:
            known[spec.key] = prompt_id
        added.append(Added(prompt_id, created, split_of(spec, task.eval_fraction)))
    return added


def add_file(connection: Connection, task_id: int, task: Task, path: Path) -> None:
    """Add the prompts of a JSONL file, one PromptSpec a line.

    Raises:
        Problem: a line that is not a prompt, or no line at all.
    """
    lines = _lines(path)
    count = 0
    while specs := list(islice(lines, _ROWS_AT_ONCE)):
        add_prompts(connection, task_id, task, specs=specs, field=_FILE, first=count)
        count += len(specs)
    if count == 0:
        raise Problem("invalid-request", FieldError(field=_FILE, expected="at least one prompt", got="an empty file"))


def data_file(directory: Path | None, named: str) -> Path:
    """Find the JSONL file that a request names beneath the data directory.

    Raises:
        Problem: no such file there; the answer is the same for every file outside.
    """
    if directory is None:
        fault = FieldError(field=_FILE, expected="prompts inline: no data directory is set here", got=shown(named))
        raise Problem("invalid-request", fault)
    root = directory.resolve()
    path = (root / named).resolve()
    if not (path.is_relative_to(root) and path.suffix == ".jsonl" and _is_file(path)):
        fault = FieldError(field=_FILE, expected="a .jsonl file beneath the data directory", got=shown(named))
        raise Problem("invalid-request", fault)
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for a file
        return False


def _faults(task: Task, specs: Sequence[PromptSpec], field: str, first: int) -> Iterator[FieldError]:
    """Name what prompts lack that the scorers of their split, whose options fit, compare with."""
    held_out = task.evaluation.reward or task.reward
    for index, spec in enumerate(specs, start=first):
        reward = held_out if split_of(spec, task.eval_fraction) == "eval" else task.reward
        for fault in prompt_faults(reward, spec.reference, spec.metadata):
            yield fault.model_copy(update={"field": f"{field}/{index}{fault.field}"})


@dataclass(frozen=True)
class _Known:
    prompt_id: int
    text: str
    reference: str | None


def _stored(connection: Connection, task_id: int, specs: Sequence[PromptSpec]) -> dict[str, _Known]:
    keys = [spec.key for spec in specs if spec.key is not None]
    if not keys:
        return {}
    columns = (prompts.c.key, prompts.c.prompt_id, prompts.c.text, prompts.c.reference)
    query = select(*columns).where(prompts.c.task_id == task_id, prompts.c.key == func.any(keys))
    return {row.key: _Known(row.prompt_id, row.text, row.reference) for row in connection.execute(query)}


def _fresh(specs: Sequence[PromptSpec], by_key: dict[str, _Known], field: str, first: int) -> list[PromptSpec]:
    fresh, conflicts = [], []
    for index, spec in enumerate(specs):
        known = None if spec.key is None else by_key.get(spec.key)
        if known is None:
            fresh.append(spec)
            if spec.key is not None:
                by_key[spec.key] = _Known(0, spec.text, spec.reference)
        elif (known.text, known.reference) != (spec.text, spec.reference):
            expected = "a new key, or the text and reference that this key was first posted with"
            conflicts.append(FieldError(field=f"{field}/{first + index}/key", expected=expected, got=shown(spec.key)))
    if conflicts:
        raise Problem("key-conflict", *conflicts)
    return fresh


def _lines(path: Path) -> Iterator[PromptSpec]:
    index = 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), start=1):
            if not line.strip():
                continue
            try:
                spec, faults = _PROMPT.parse(line, prefix=f"{_FILE}/{index}")
            except Problem as problem:
                spec, faults = None, list(problem.errors)
            if spec is None:
                told = [fault.model_copy(update={"expected": f"{fault.expected} (line {number})"}) for fault in faults]
                raise Problem("invalid-request", *told)
            yield spec
            index += 1
