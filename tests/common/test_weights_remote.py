"""On an object store the manifest decides what there is, and what was downloaded once is not downloaded again."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tba_common import weights_remote
from tba_common.weights import MANIFEST, WeightsError, WeightStore
from tba_common.weights_cache import KEEP
from tests.common.stored_versions import Place, flip_a_byte, publish, value_of, write_model


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    yield Place(f"memory://{uuid.uuid4().hex}/weights", tmp_path / "cache")
    MemoryFileSystem.store.clear()


@pytest.fixture
def store(place: Place) -> WeightStore:
    return place.store


class Killed(BaseException):
    """The process ends here."""


def killed(*args: Any, **kwargs: Any) -> None:
    raise Killed


def test_files_without_a_manifest_are_no_version_and_the_next_attempt_clears_them(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_more(directory: Path) -> None:
        write_model(directory, 2.0)
        (directory / "leftover.json").write_text("{}")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "pipe_file", killed)
        with pytest.raises(Killed):
            publish(place.store, 1, write_more)
    assert "v000001/model.safetensors" in place.names
    assert place.store.versions() == []
    with pytest.raises(WeightsError, match=r"version 1: expected manifest\.json at memory://.*/v000001, found none"):
        place.store.find(1)
    publish(place.store, 1)
    assert "v000001/leftover.json" not in place.names
    assert value_of(place.store.find(1)) == 1.0


def test_collecting_clears_what_a_killed_publisher_left_half_uploaded(place: Place) -> None:
    publish(place.store, 1)
    place.write("v000002/model.safetensors", b"half")
    place.write("notes.txt", b"not ours")
    assert place.store.collect(keep=2) == []
    assert {name.split("/")[0] for name in place.names} == {"v000001", "notes.txt"}


def test_deleting_begins_with_the_manifest(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = MemoryFileSystem.rm_file

    def remove_one(self: MemoryFileSystem, path: str) -> None:
        remove(self, path)
        raise Killed

    for version in range(3):
        publish(place.store, version)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "rm_file", remove_one)
        with pytest.raises(Killed):
            place.store.collect(keep=2)
    assert place.store.versions() == [1, 2]
    assert "v000000/model.safetensors" in place.names
    place.store.collect(keep=2)
    assert "v000000/model.safetensors" not in place.names


def test_the_store_turns_away_the_second_of_two_publishers(place: Place) -> None:
    def second(directory: Path) -> None:
        publish(place.store, 1)
        write_model(directory, 2.0)

    with pytest.raises(WeightsError, match="version 1 exists already"):
        publish(place.store, 1, second)
    assert value_of(place.store.find(1)) == 1.0


def test_what_was_downloaded_once_is_not_downloaded_again(place: Place) -> None:
    announced = publish(place.store, 1)
    first = place.store.fetch(announced)
    place.remove("v000001/model.safetensors")
    again = place.store.fetch(announced)
    assert again.directory == first.directory
    assert again.directory.is_relative_to(place.cache)


def test_a_store_that_was_emptied_and_used_again_yields_its_new_bytes(place: Place) -> None:
    publish(place.store, 1)
    assert value_of(place.store.find(1)) == 1.0
    place.files.rm(place.path(""), recursive=True)
    announced = publish(place.store, 1, lambda directory: write_model(directory, 2.0))
    assert value_of(place.store.find(1)) == value_of(place.store.fetch(announced)) == 2.0


def test_what_fails_its_proof_never_enters_the_cache(place: Place) -> None:
    publish(place.store, 7)
    whole = place.read("v000007/model.safetensors")
    flip_a_byte(place)
    with pytest.raises(WeightsError, match="expected sha256"):
        place.store.find(7)
    place.write("v000007/model.safetensors", whole)
    assert value_of(place.store.find(7)) == 1.0


def test_the_version_that_is_loaded_stays_while_others_come_and_go(store: WeightStore, place: Place) -> None:
    for version in range(KEEP + 3):
        publish(store, version)
    loaded = store.find(0)
    for version in range(1, KEEP + 3):
        store.find(version)
    assert value_of(loaded) == 1.0
    kept = sorted(path.name[:7] for path in place.cache.iterdir() if path.is_dir())
    assert kept == ["v000000", *(f"v{version:06d}" for version in range(3, KEEP + 3))]


def test_without_a_cache_a_version_lives_as_long_as_its_snapshot(place: Place) -> None:
    store = WeightStore(place.url)
    publish(store, 1)
    snapshot = store.find(1)
    directory = snapshot.directory
    assert value_of(snapshot) == 1.0
    del snapshot
    assert not directory.exists()


def test_a_version_s_files_travel_at_the_same_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = MemoryFileSystem.cat_file, MemoryFileSystem.put_file
    # Each waits for the other: one after the other, neither would come.
    up, down = threading.Barrier(2, timeout=60), threading.Barrier(2, timeout=60)

    def put_file(self: MemoryFileSystem, *args: Any, **kwargs: Any) -> None:
        up.wait()
        write(self, *args, **kwargs)

    def cat_file(self: MemoryFileSystem, path: str, *args: Any, **kwargs: Any) -> bytes:
        if not path.endswith(MANIFEST):
            down.wait()
        data: bytes = read(self, path, *args, **kwargs)
        return data

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    publish(place.store, 1)
    assert value_of(place.store.find(1)) == 1.0


def test_one_large_file_travels_in_pieces_at_the_same_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[tuple[int, int]] = []
    read = MemoryFileSystem.cat_file

    def cat_file(self: MemoryFileSystem, path: str, start: int | None = None, end: int | None = None) -> bytes:
        if path.endswith(".safetensors") and start is not None and end is not None:
            pieces.append((start, end))
        data: bytes = read(self, path, start=start, end=end)
        return data

    monkeypatch.setattr(weights_remote, "PIECE_BYTES", 50)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    publish(place.store, 1)
    snapshot = place.store.find(1)
    size = len(place.read("v000001/model.safetensors"))
    assert sorted(pieces) == [(start, min(start + 50, size)) for start in range(0, size, 50)]
    assert len(pieces) > 1
    assert value_of(snapshot) == 1.0
