"""The full-size examples: tasks that the API takes, values that the chart takes, settings that the services take."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from services.buffer.settings import BufferSettings
from services.generator.settings import GeneratorSettings
from services.learner.settings import LearnerSettings
from tba_common.scorer_options import option_faults
from tba_common.settings import ServiceSettings
from tba_common.tasks import PromptSpec, Task, kind_of
from tests.chart.rendering import ROOT, render

EXAMPLES: Final = sorted(path.parent for path in (ROOT / "deploy/examples").glob("*/task.json"))
PROCESSES: Final[dict[str, type[ServiceSettings]]] = {
    "buffer": BufferSettings,
    "generator": GeneratorSettings,
    "learner": LearnerSettings,
}
A_COMMIT: Final = "0" * 40  # stands for the one that whoever installs gives

pytestmark = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)


def task_of(example: Path) -> Task:
    return Task.model_validate_json((example / "task.json").read_text())


def values_of(example: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((example / "values.yaml").read_text())
    return values


def scorer_settings(name: str) -> type[ServiceSettings]:
    kind = kind_of(name)
    module = importlib.import_module(f"services.reward.{kind}_settings")
    found: type[ServiceSettings] = getattr(module, f"{kind.title().replace('_', '')}Settings")
    return found


def test_the_task_is_one_and_its_scorers_take_their_options(example: Path) -> None:
    task = task_of(example)
    for term in (*task.reward, *(task.evaluation.reward or ())):
        assert option_faults(term.scorer, term.options) == []


def test_every_scorer_that_the_task_names_is_installed(example: Path) -> None:
    task = task_of(example)
    named = {term.scorer for term in (*task.reward, *(task.evaluation.reward or ()))}
    assert named == {scorer["name"] for scorer in values_of(example)["scorers"]}


def test_the_chart_takes_the_values(example: Path) -> None:
    kinds = {manifest["kind"] for manifest in render(values_of(example))}
    assert {"Deployment", "Service"} <= kinds


def test_the_services_take_their_settings(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = values_of(example)
    parts = [(PROCESSES[name], values.get(name, {})) for name in PROCESSES]
    parts += [(scorer_settings(scorer["name"]), scorer) for scorer in values["scorers"]]
    for kind, part in parts:
        with monkeypatch.context() as environment:
            if kind is LearnerSettings:
                environment.setenv("TBA_MODEL", values["policy"]["model"])
            for name, value in part.get("settings", {}).items():
                assert name.removeprefix("TBA_").lower() in kind.model_fields
                environment.setenv(name, A_COMMIT if name == "TBA_MODEL_REVISION" else str(value))
            kind.from_environment()


def test_prompts_that_come_along_are_prompts(example: Path) -> None:
    for line in (example / "prompts.jsonl").read_text().splitlines() if example.name == "redteam" else ():
        assert PromptSpec.model_validate(json.loads(line)).key
