"""What tests of weight stores share: small versions, and ways to damage them wherever they are stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tba_common.messages import Weights
from tba_common.weights import MANIFEST, Canary, Snapshot, WeightStore

CANARY = Canary(token_ids=((1, 2, 3),), prompt_lengths=(1,), logprobs=(-4.5,))


def write_model(directory: Path, value: float = 1.0) -> None:
    save_file({"layer.weight": np.full((4, 4), value, np.float32)}, directory / "model.safetensors")
    (directory / "config.json").write_text("{}")


def value_of(snapshot: Snapshot) -> float:
    """What `write_model` was given."""
    return float(load_file(snapshot.directory / "model.safetensors")["layer.weight"][0, 0])


def publish(store: WeightStore, version: int, write: Callable[[Path], None] = write_model) -> Weights:
    return store.publish("run", version, step=version * 2, write=write, canary=CANARY, steps_per_version=2)


@dataclass
class Place:
    """A store and the door behind it: files by name, as whoever damages them sees them."""

    url: str
    cache: Path

    @property
    def store(self) -> WeightStore:
        """As a generator opens it."""
        return WeightStore(self.url, self.cache)

    @property
    def files(self) -> Any:
        """The file system of fsspec."""
        return fsspec.core.url_to_fs(self.url, use_listings_cache=False)[0]

    def path(self, name: str) -> str:
        """Where `name` is on `files`."""
        return f"{fsspec.core.url_to_fs(self.url)[1]}/{name}"

    @property
    def names(self) -> list[str]:
        """Every file there is."""
        root = self.path("")
        return sorted(path.removeprefix(root) for path in self.files.find(root.rstrip("/")))

    def read(self, name: str) -> bytes:
        data: bytes = self.files.cat_file(self.path(name))
        return data

    def write(self, name: str, data: bytes) -> None:
        self.files.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
        self.files.pipe_file(self.path(name), data)

    def remove(self, name: str) -> None:
        self.files.rm_file(self.path(name))


VERSION = "v000007"
MODEL = f"{VERSION}/model.safetensors"


def truncate(place: Place) -> None:
    place.write(MODEL, place.read(MODEL)[:-8])


def flip_a_byte(place: Place) -> None:
    place.write(MODEL, place.read(MODEL)[:-1] + b"\x00")


def remove_a_file(place: Place) -> None:
    place.remove(f"{VERSION}/config.json")


def edit_the_manifest(place: Place) -> None:
    manifest = json.loads(place.read(f"{VERSION}/{MANIFEST}"))
    place.write(f"{VERSION}/{MANIFEST}", json.dumps(manifest | {"step": 99}).encode())


def remove_everything(place: Place) -> None:
    for name in place.names:
        place.remove(name)


#: Each changes version 7 of a place; the error that names it must match.
DAMAGES = pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model.safetensors expected \d+ bytes, got \d+"),
        (flip_a_byte, "model.safetensors expected sha256"),
        (remove_a_file, "config.json is missing"),
        (edit_the_manifest, "manifest digest expected"),
        (remove_everything, "expected .*manifest.json at .*v000007"),
    ],
)
