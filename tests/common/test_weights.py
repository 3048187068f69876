"""A version is whole and proven wherever it is stored, or it is an error that says expected and got."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from tba_common.weights import MANIFEST, WeightsError, WeightStore
from tests.common.stored_versions import CANARY, DAMAGES, Place, publish, value_of, write_model


@pytest.fixture(params=["path", "file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Each kind of store; on the last the same suite runs as on an object store."""
    root = tmp_path / "weights"
    url = {"path": str(root), "file": root.as_uri(), "memory": f"memory://{uuid.uuid4().hex}/weights"}[request.param]
    yield Place(url, tmp_path / "cache")
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()


@pytest.fixture
def store(place: Place) -> WeightStore:
    return place.store


def test_a_published_version_is_fetched_with_its_canary_and_tensor_names(store: WeightStore) -> None:
    snapshot = store.fetch(publish(store, 3))
    assert (snapshot.version, snapshot.step) == (3, 6)
    assert snapshot.canary == CANARY
    assert snapshot.tensors == ("layer.weight",)
    assert value_of(snapshot) == 1.0


def test_files_in_folders_are_part_of_a_version(store: WeightStore) -> None:
    def write(directory: Path) -> None:
        write_model(directory)
        (directory / "original").mkdir()
        (directory / "original/notes.txt").write_text("")

    publish(store, 3, write)
    assert (store.find(3).directory / "original/notes.txt").read_bytes() == b""


def test_an_announcement_says_where_the_version_is(place: Place) -> None:
    uri = publish(place.store, 3).uri
    assert json.loads(Place(uri, place.cache).read(MANIFEST))["version"] == 3


def test_a_returning_learner_announces_the_same_pointer(store: WeightStore) -> None:
    announced = publish(store, 3)
    assert store.announce("run", 3, steps_per_version=2) == announced


def test_a_version_is_never_overwritten(store: WeightStore) -> None:
    publish(store, 1)
    with pytest.raises(WeightsError, match="version 1 exists already"):
        publish(store, 1, lambda directory: write_model(directory, 2.0))
    assert value_of(store.find(1)) == 1.0


def test_a_version_that_is_being_written_is_invisible(store: WeightStore) -> None:
    def interrupted(directory: Path) -> None:
        write_model(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(store, 1, interrupted)
    assert store.versions() == []
    publish(store, 1)
    assert store.versions() == [1]


@DAMAGES
def test_damage_is_named(place: Place, damage: Callable[[Place], None], message: str) -> None:
    weights = publish(place.store, 7)
    damage(place)
    with pytest.raises(WeightsError, match=message):
        place.store.fetch(weights)


def test_a_manifest_that_does_not_read_is_named(place: Place) -> None:
    publish(place.store, 7)
    place.write(f"v000007/{MANIFEST}", place.read(f"v000007/{MANIFEST}")[:-8])
    with pytest.raises(WeightsError, match=r"version 7: manifest\.json does not read: Invalid JSON"):
        place.store.find(7)


def test_a_manifest_of_another_version_is_refused(place: Place) -> None:
    publish(place.store, 7)
    place.write(f"v000008/{MANIFEST}", place.read(f"v000007/{MANIFEST}"))
    with pytest.raises(WeightsError, match="expected version 8, the manifest says 7"):
        place.store.find(8)


@pytest.mark.parametrize("name", ["../../outside.json", "/outside.json"])
def test_a_manifest_that_names_files_outside_its_version_is_refused(place: Place, name: str) -> None:
    publish(place.store, 7)
    manifest = json.loads(place.read(f"v000007/{MANIFEST}"))
    manifest["files"][name] = {"bytes": 2, "sha256": "0"}
    place.write(f"v000007/{MANIFEST}", json.dumps(manifest).encode())
    with pytest.raises(WeightsError, match=r"the manifest names \['.*outside\.json'\]"):
        place.store.find(7)


def test_a_manifest_that_names_a_pickle_is_refused(place: Place) -> None:
    publish(place.store, 7)
    manifest = json.loads(place.read(f"v000007/{MANIFEST}"))
    manifest["files"]["extra/pytorch_model.bin"] = {"bytes": 2, "sha256": "0"}
    place.write(f"v000007/{MANIFEST}", json.dumps(manifest).encode())
    with pytest.raises(WeightsError, match=r"only safetensors.*pytorch_model\.bin"):
        place.store.find(7)


def test_a_pickle_is_refused(store: WeightStore) -> None:
    def write(directory: Path) -> None:
        write_model(directory)
        (directory / "pytorch_model.bin").write_bytes(b"\x80")

    with pytest.raises(WeightsError, match=r"only safetensors.*pytorch_model\.bin"):
        publish(store, 1, write)


def test_a_version_without_tensors_is_refused(store: WeightStore) -> None:
    def write(directory: Path) -> None:
        (directory / "config.json").write_text("{}")

    with pytest.raises(WeightsError, match=r"expected a \.safetensors file, got \['config.json'\]"):
        publish(store, 1, write)


def test_collecting_keeps_the_newest_and_the_named(place: Place) -> None:
    store = place.store
    for version in range(6):
        publish(store, version)
    assert store.collect(keep=2, also={1}) == [0, 2, 3]
    assert store.versions() == [1, 4, 5]
    assert {name.split("/")[0] for name in place.names} == {"v000001", "v000004", "v000005"}
    assert store.collect(keep=10) == []


def test_a_store_that_nothing_was_published_to_is_empty(store: WeightStore) -> None:
    assert store.versions() == []
    assert store.collect(keep=2) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://host/weights", "expected a path, file or one of .*'s3'.*, got https"),
        ("file://weights", "expected file:///path, got file://weights"),
        ("s3://key:hush@bucket/weights", "credentials come from the environment"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_and_its_secrets_are_not_shown(url: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as refused:
        WeightStore(url)
    assert "hush" not in str(refused.value)
