"""What `make images` builds has, in each image, the libraries of the processes that the values run on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest
import yaml

from tba_common.tasks import SCORER_KINDS, kind_of
from tests.chart.rendering import CHART, ROOT, render
from tests.chart.rules.rule import pods

#: The extra of each scorer kind; that of the others is the name of their process.
OF_SCORERS: Final = {"verifier": "reward", "code": "reward", "judge": "reward-judge"}
WITH_MODEL: Final = "reward-models"
VALUES: Final = sorted([*CHART.glob("**/*values.yaml"), *ROOT.glob("deploy/examples/*/values.yaml")])
#: `local` is every process, on CPUs.
_IMPLIED: Final = {"local": {"buffer", "generator-transformers", "learner", "reward", "reward-models", "reward-judge"}}


def built() -> dict[str, tuple[set[str], str]]:
    """By image: its extras, and the kind of torch in it."""
    lines = re.findall(r"\$\(call IMAGE,([\w-]+),([^,]+),(\w+)(?:,[^)]*)?\)", (ROOT / "Makefile").read_text())
    images = {}
    for name, extras, torch in lines:
        listed = set(extras.split("$(comma)"))
        images[name] = (listed.union(*(_IMPLIED.get(extra, set()) for extra in listed)), torch)
    return images


def extras_of(kind: str) -> set[str]:
    return {OF_SCORERS.get(kind, WITH_MODEL)}


@pytest.mark.parametrize("file", VALUES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_scorer_runs_on_an_image_with_what_its_kind_needs(file: Path) -> None:
    for found in pods(render(yaml.safe_load(file.read_text()) or {})):
        if found.component.startswith("reward-"):
            container = found.spec["containers"][0]
            image = container["image"].rsplit("/", 1)[-1].split("@")[0].split(":")[0]
            extras, torch = built()[image]
            needed = extras_of(kind_of(container["args"][1]))
            assert needed <= extras, f"{found.name} on {image}"
            assert torch != "none" or WITH_MODEL not in needed, f"{found.name} on {image}"


def test_every_kind_of_scorer_has_a_slim_image() -> None:
    slim = [extras for name, (extras, _) in built().items() if name != "tba"]
    for kind in SCORER_KINDS:
        assert any(extras_of(kind) <= extras for extras in slim), kind


def test_every_extra_of_an_image_is_one_of_the_project() -> None:
    declared = set(re.findall(r"^([a-z0-9-]+) = \[$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert set().union(*(extras for extras, _ in built().values())) <= declared
