"""What an import was asked for, resolved: the recipe, then a task document over it, then the command's own options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from tba_cli import dataset_rows
from tba_cli.errors import BadInput
from tba_cli.importing import Split, prompts_of, without_repetitions
from tba_cli.posting import task_of
from tba_cli.recipes import RECIPES, Columns, Recipe
from tba_common.tasks import TEXT, PromptSpec, Task

_DEFAULT_REWARD: Final = [{"scorer": "verifier", "options": {"match": "exact"}}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of `tba tasks import`. None and empty stand for what was not said."""

    source: str
    recipe: str | None = None
    task_file: Path | None = None
    config: str | None = None
    split: str | None = None
    held_out: str | None = None
    text: str | None = None
    reference: str | None = None
    key: str | None = None
    metadata: Sequence[str] = ()
    limit: int | None = None
    eval_limit: int | None = None
    few_shot: Path | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the task
    settings: Sequence[str] = ()  # "sampling.completions=8"


@dataclass(frozen=True, slots=True)
class Plan:
    """A task and its prompts, everything checked."""

    task: Task
    prompts: Sequence[PromptSpec]
    repeated: int  # rows that are left out


def plan_of(request: Request) -> Plan:
    """Read and check everything that would be posted.

    Raises:
        BadInput: a row, an option or the task document does not fit; says where.
        TbaError: a data set cannot be had.
    """
    by_name = request.source in RECIPES and not Path(request.source).exists()
    name = request.recipe or (request.source if by_name else None)
    recipe = RECIPES[name] if name else Recipe(dataset=request.source)
    source = recipe.dataset if by_name else request.source
    task = _task(request, recipe, name)
    train = _read(request, recipe, source, split=request.split or recipe.split, kind="train")
    held_out = _held_out(request, recipe, source, by_name=by_name)
    prompts = without_repetitions(train, held_out)
    return Plan(task, prompts, len(train) + len(held_out) - len(prompts))


def _held_out(request: Request, recipe: Recipe, source: str, *, by_name: bool) -> list[PromptSpec]:
    """The prompts of another file, or of another split of the same data set."""
    other = request.held_out or (recipe.eval_split if by_name else None)
    if other is None:
        return []
    if Path(other).is_file() or Path(source).is_file():
        return _read(request, recipe, other, split=None, kind="eval")
    return _read(request, recipe, source, split=other, kind="eval")


def _read(request: Request, recipe: Recipe, source: str, *, split: str | None, kind: Split) -> list[PromptSpec]:
    columns = Columns(
        text=request.text or recipe.columns.text,
        reference=request.reference or recipe.columns.reference,
        key=request.key or recipe.columns.key,
        metadata=tuple(request.metadata) or recipe.columns.metadata,
    )
    rows = dataset_rows.rows_of(source, config=request.config or recipe.config, split=split)
    limit = request.limit if kind == "train" else request.eval_limit
    return prompts_of(islice(rows, limit), columns, kind)


def _task(request: Request, recipe: Recipe, name: str | None) -> Task:
    fields: dict[str, Any] = {"reward": _DEFAULT_REWARD}
    if name is not None:
        fields["name"] = name
    own = {name: value for name, value in request.fields.items() if value is not None}
    for layer in (recipe.task, _document(request.task_file), own, *map(_setting, request.settings)):
        fields = _over(fields, layer)
    if "name" not in fields:
        raise BadInput("no --name: neither a recipe nor --task gives the task one")
    if request.few_shot is not None:
        fields["template"] = request.few_shot.read_text("utf-8") + str(fields.get("template", TEXT))
    return task_of(**fields)


def _document(path: Path | None) -> Mapping[str, Any]:
    if path is None:
        return {}
    try:
        document = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path}: expected a JSON task, got {error}") from error
    if not isinstance(document, dict):
        raise BadInput(f"{path}: expected a JSON object, got {type(document).__name__}")
    return document


def _setting(said: str) -> Mapping[str, Any]:
    """`target.beta=0.05` as {"target": {"beta": 0.05}}; what is no JSON is taken as text."""
    path, equals, text = said.partition("=")
    if not (path and equals):
        raise BadInput(f"--set: expected FIELD=VALUE, got {said!r}")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    for name in reversed(path.split(".")):
        value = {name: value}
    found: Mapping[str, Any] = value
    return found


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        merged[name] = _over(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged
