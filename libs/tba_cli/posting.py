"""From files to tasks: JSONL of prompts under any field names, or one JSON task document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from tba_cli.errors import BadInput
from tba_common.tasks import PromptSpec, Task

#: Fields of a line that are taken as they are; any other field of the data set is left out.
_OWN_FIELDS: Final = ("key", "split", "metadata")


def text_of(content: bytes) -> str:
    """Read a file's bytes.

    Raises:
        BadInput: they are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"expected UTF-8, got byte {content[error.start]:#04x} at {error.start}") from error


def document_of(text: str) -> Mapping[str, Any] | None:
    """Return the task document that a file is, or None where it is JSONL."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and {"reward", "prompts"} & set(value) else None


def prompts_of(text: str, *, text_field: str, reference_field: str) -> list[PromptSpec]:
    """Read one prompt a line; empty lines are passed over.

    Raises:
        BadInput: a line is not JSON, has no such field, or its value is no prompt; no line at all.
    """
    prompts = [
        _prompt(line, number, text_field, reference_field)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not prompts:
        raise BadInput("expected at least one line with a prompt, got none")
    return prompts


def seeds_of(text: str, *, answer_field: str, prompt_field: str) -> list[dict[str, str]]:
    """Read one known answer a line, with the text or the key of the prompt it answers where a line has one.

    Empty lines are passed over.

    Raises:
        BadInput: a line is not a JSON object of such texts; no line at all.
    """
    seeds = [
        _seed(line, number, answer_field, prompt_field)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not seeds:
        raise BadInput("expected at least one line with an answer, got none")
    return seeds


def task_of(**fields: Any) -> Task:
    """Build a task from options; None stands for the default.

    Raises:
        BadInput: a value that no task can have.
    """
    try:
        return Task.model_validate(_given(fields))
    except ValidationError as error:
        raise BadInput(_sentence(error)) from error


def _given(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _given(item) for name, item in value.items() if item is not None}
    return value


def _row(line: str, number: int, needed: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"line {number}: expected a JSON object, got {error}") from error
    if not isinstance(row, dict) or needed not in row:
        got = ", ".join(row) if isinstance(row, dict) else "no object"
        raise BadInput(f"line {number}: expected a field {needed!r}, got {got}")
    return row


def _seed(line: str, number: int, answer_field: str, prompt_field: str) -> dict[str, str]:
    row = _row(line, number, answer_field)
    found = {"answer": row[answer_field], "prompt": row.get(prompt_field), "key": row.get("key")}
    for name, value in found.items():
        if value is not None and not isinstance(value, str):
            raise BadInput(f"line {number}: expected {name} as text, got {json.dumps(value)}")
    return {name: value for name, value in found.items() if value is not None}


def _prompt(line: str, number: int, text_field: str, reference_field: str) -> PromptSpec:
    row = _row(line, number, text_field)
    fields = {name: row[name] for name in _OWN_FIELDS if name in row}
    reference = row.get(reference_field)
    if isinstance(reference, int | float):
        reference = json.dumps(reference)
    try:
        return PromptSpec.model_validate({**fields, "text": row[text_field], "reference": reference})
    except ValidationError as error:
        raise BadInput(f"line {number}: {_sentence(error)}") from error


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else str(first["msg"])
