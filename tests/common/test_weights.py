"""A version is whole and proven, or it is an error that says what was expected and what was found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tba_common.messages import Weights
from tba_common.weights import MANIFEST, Canary, WeightsError, WeightStore

CANARY = Canary(token_ids=((1, 2, 3),), prompt_lengths=(1,), logprobs=(-4.5,))


def write_model(directory: Path, value: float = 1.0) -> None:
    save_file({"layer.weight": np.full((4, 4), value, np.float32)}, directory / "model.safetensors")
    (directory / "config.json").write_text("{}")


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path / "weights")


def publish(store: WeightStore, version: int, write: Callable[[Path], None] = write_model) -> Weights:
    return store.publish("run", version, step=version * 2, write=write, canary=CANARY, steps_per_version=2)


def test_a_published_version_is_fetched_with_its_canary_and_tensor_names(store: WeightStore) -> None:
    snapshot = store.fetch(publish(store, 3))
    assert (snapshot.version, snapshot.step) == (3, 6)
    assert snapshot.canary == CANARY
    assert snapshot.tensors == ("layer.weight",)


def test_a_returning_learner_announces_the_same_pointer(store: WeightStore) -> None:
    announced = publish(store, 3)
    assert store.announce("run", 3, steps_per_version=2) == announced


def test_a_version_is_never_overwritten(store: WeightStore) -> None:
    publish(store, 1)
    with pytest.raises(WeightsError, match="version 1 exists already"):
        publish(store, 1)


def test_a_version_that_is_being_written_is_invisible(store: WeightStore, tmp_path: Path) -> None:
    def interrupted(directory: Path) -> None:
        write_model(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(store, 1, interrupted)
    assert store.versions() == []
    publish(store, 1)
    assert store.versions() == [1]


def write_a_config_alone(directory: Path) -> None:
    (directory / "config.json").write_text("{}")


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def flip_a_byte(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")


def remove_a_file(directory: Path) -> None:
    (directory / "config.json").unlink()


def edit_the_manifest(directory: Path) -> None:
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest["step"] = 99
    (directory / MANIFEST).write_text(json.dumps(manifest))


def remove_everything(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model.safetensors expected \d+ bytes, got \d+"),
        (flip_a_byte, "model.safetensors expected sha256"),
        (remove_a_file, "config.json is missing"),
        (edit_the_manifest, "manifest digest expected"),
        (remove_everything, "expected a directory with manifest.json"),
    ],
)
def test_damage_is_named(store: WeightStore, tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    weights = publish(store, 7)
    damage(tmp_path / "weights" / "v000007")
    with pytest.raises(WeightsError, match=message):
        store.fetch(weights)


def test_a_pickle_is_refused(store: WeightStore) -> None:
    def write(directory: Path) -> None:
        write_model(directory)
        (directory / "pytorch_model.bin").write_bytes(b"\x80")

    with pytest.raises(WeightsError, match=r"only safetensors.*pytorch_model\.bin"):
        publish(store, 1, write)


def test_a_version_without_tensors_is_refused(store: WeightStore) -> None:
    with pytest.raises(WeightsError, match=r"expected a \.safetensors file, got \['config.json'\]"):
        publish(store, 1, write_a_config_alone)


def test_collecting_keeps_the_newest_and_the_named(store: WeightStore) -> None:
    for version in range(6):
        publish(store, version)
    assert store.collect(keep=2, also={1}) == [0, 2, 3]
    assert store.versions() == [1, 4, 5]
    assert store.collect(keep=10) == []


def test_collecting_clears_what_a_killed_publisher_left_half_written(store: WeightStore, tmp_path: Path) -> None:
    publish(store, 1)
    (tmp_path / "weights" / "v000002.4242.tmp").mkdir()
    store.collect(keep=2)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["v000001"]
