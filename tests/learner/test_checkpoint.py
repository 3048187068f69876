"""Checkpoints: going on from one is the same, bit by bit, as never having stopped; damage is seen and said."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from services.learner.checkpoint import STATE, TENSORS, CheckpointError, CheckpointStore, Progress
from services.learner.schedule import LearningRateSchedule
from services.learner.update import Updater
from tests.learner.groups import batch

pytestmark = pytest.mark.integration

MakeUpdater = Callable[..., Updater]


def train(updater: Updater, steps: range) -> None:
    for step in steps:
        updater.update(batch(step), step)


def state(updater: Updater) -> dict[str, Tensor]:
    """Every tensor of the policy and of its optimiser, by name."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in updater.policy.model.named_parameters():
        tensors[name] = parameter.detach()
        tensors |= {f"{moment} of {name}": value for moment, value in updater.optimizer.state[parameter].items()}
    return tensors


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    return [name for name in first.keys() | second.keys() if not torch.equal(first[name], second[name])]


def saved(directory: Path, updater: Updater, *steps: int) -> CheckpointStore:
    """A store with a checkpoint at each of these steps, of which step s has trained batch s and read to 10 s."""
    store = CheckpointStore(directory)
    for step in steps:
        store.save(Progress(step, step, 10 * step), updater)
    return store


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("kind", ["model", "tied_model"])
def test_three_steps_a_checkpoint_and_three_more_are_six_steps_bit_by_bit(
    kind: str, make_updater: MakeUpdater, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    options = {"folder": folder, "schedule": LearningRateSchedule(warmup=4, stable=1, decay=3)}
    straight, first, second = (make_updater(**options) for _ in range(3))
    train(straight, range(1, 7))
    train(first, range(1, 4))
    store = saved(tmp_path, first, 3)
    assert store.load(second) == Progress(3, 3, 30)
    assert differing(state(second), state(first)) == []
    train(second, range(4, 7))
    assert differing(state(second), state(straight)) == []


def test_a_reference_that_was_reset_comes_back_with_the_checkpoint(make_updater: MakeUpdater, tmp_path: Path) -> None:
    straight, first, second = (make_updater(reset_reference_every=2) for _ in range(3))
    train(straight, range(1, 7))
    train(first, range(1, 4))
    saved(tmp_path, first, 3).load(second)
    train(second, range(4, 7))
    assert differing(state(second), state(straight)) == []


def test_loading_brings_the_random_state_back(make_updater: MakeUpdater, tmp_path: Path) -> None:
    store = saved(tmp_path, make_updater(), 1)
    expected = torch.rand(4)
    store.load(make_updater())
    assert torch.equal(torch.rand(4), expected)


def test_a_checkpoint_before_the_first_step_has_no_moments(make_updater: MakeUpdater, tmp_path: Path) -> None:
    updater, fresh = make_updater(), make_updater()
    saved(tmp_path, updater, 0).load(fresh)
    train(updater, range(1, 3))
    train(fresh, range(1, 3))
    assert differing(state(fresh), state(updater)) == []


def test_a_checkpoint_without_reports_is_read_as_well(make_updater: MakeUpdater, tmp_path: Path) -> None:
    store = saved(tmp_path, make_updater(), 1)
    state_file = tmp_path / "step-00000001" / STATE
    written = json.loads(state_file.read_text())
    del written["reports"]
    state_file.write_text(json.dumps(written))
    assert store.load(make_updater()) == Progress(1, 1, 10)


def test_without_any_checkpoint_there_is_nothing_to_load(make_updater: MakeUpdater, tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none").load(make_updater()) is None


def test_the_newest_of_two_is_loaded_and_older_ones_are_gone(make_updater: MakeUpdater, tmp_path: Path) -> None:
    store = saved(tmp_path, make_updater(), 8, 9, 10)
    assert names(tmp_path) == ["step-00000009", "step-00000010"]
    assert store.load(make_updater()) == Progress(10, 10, 100)


def flip_a_byte(checkpoint: Path) -> None:
    data = bytearray((checkpoint / TENSORS).read_bytes())
    data[-1] ^= 1
    (checkpoint / TENSORS).write_bytes(data)


def cut_short(checkpoint: Path) -> None:
    data = (checkpoint / TENSORS).read_bytes()
    (checkpoint / TENSORS).write_bytes(data[: len(data) // 2])


def lose_the_tensors(checkpoint: Path) -> None:
    (checkpoint / TENSORS).unlink()


def cut_the_state_short(checkpoint: Path) -> None:
    (checkpoint / STATE).write_text((checkpoint / STATE).read_text()[:20])


def lose_a_field(checkpoint: Path) -> None:
    (checkpoint / STATE).write_text("{}")


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, lose_the_tensors, cut_the_state_short, lose_a_field])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_is_used(
    damage: Callable[[Path], None], make_updater: MakeUpdater, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    updater = make_updater()
    store = saved(tmp_path, updater, 1)
    kept = {name: tensor.clone() for name, tensor in updater.policy.model.state_dict().items()}
    train(updater, range(1, 3))
    saved(tmp_path, updater, 2)
    damage(tmp_path / "step-00000002")
    resumed = make_updater()
    with caplog.at_level(logging.ERROR):
        assert store.load(resumed) == Progress(1, 1, 10)
    assert differing(resumed.policy.model.state_dict(), kept) == []
    (event,) = caplog.records
    assert event.getMessage() == "checkpoint is damaged"
    assert vars(event)["checkpoint"] == "step-00000002"
    assert vars(event)["reason"]


def test_when_all_are_damaged_it_stops_and_says_why_of_each(make_updater: MakeUpdater, tmp_path: Path) -> None:
    store = saved(tmp_path, make_updater(), 1, 2)
    flip_a_byte(tmp_path / "step-00000001")
    lose_the_tensors(tmp_path / "step-00000002")
    with pytest.raises(CheckpointError, match=r"step-00000002: .*No such file.*step-00000001: .*expected sha256"):
        store.load(make_updater())


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(make_updater: MakeUpdater, tmp_path: Path) -> None:
    store = saved(tmp_path, make_updater(), 1, 2)
    flip_a_byte(tmp_path / "step-00000002")
    saved(tmp_path, make_updater(), 2)
    assert store.load(make_updater()) == Progress(2, 2, 20)


def test_a_damaged_later_step_takes_no_place_from_a_whole_checkpoint(make_updater: MakeUpdater, tmp_path: Path) -> None:
    saved(tmp_path, make_updater(), 1, 9)
    flip_a_byte(tmp_path / "step-00000009")
    saved(tmp_path, make_updater(), 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_what_a_kill_left_half_written_is_not_loaded_and_is_removed(make_updater: MakeUpdater, tmp_path: Path) -> None:
    store = saved(tmp_path, make_updater(), 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000002.4711.tmp")
    assert store.load(make_updater()) == Progress(1, 1, 10)
    saved(tmp_path, make_updater(), 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_checkpoint_of_another_model_is_refused_before_a_weight_is_touched(
    make_updater: MakeUpdater, tied_model: Path, tmp_path: Path
) -> None:
    store = saved(tmp_path, make_updater(folder=tied_model), 1)
    updater = make_updater()
    before = {name: tensor.clone() for name, tensor in updater.policy.model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"of another model: 1 tensors differ, \['model.lm_head.weight'\]"):
        store.load(updater)
    assert differing(updater.policy.model.state_dict(), before) == []
