"""Weights at rest: immutable versioned directories with a manifest, `v000042/`.

Law: written aside, synced, renamed, and only then announced; never overwritten. Whoever loads a version first
checks every byte of it against the manifest, and the manifest against the announced digest. Safetensors only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import struct
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tba_common.disk import new_directory, sha256
from tba_common.messages import Weights

MANIFEST: Final = "manifest.json"
_FORBIDDEN_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".py"})

log = logging.getLogger(__name__)


class WeightsError(Exception):
    """A version cannot be used; the message says what was expected and what was found."""


@dataclass(frozen=True)
class Canary:
    """Fixed sequences with the learner's own log-probabilities, so that a generator can prove what it loaded.

    `logprobs[i]` sums the natural log-probabilities at temperature 1 of `token_ids[i][prompt_lengths[i]:]`.
    """

    token_ids: tuple[tuple[int, ...], ...]
    prompt_lengths: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Snapshot:
    """A verified version on local disk: a complete Hugging Face folder."""

    directory: Path
    version: int
    step: int
    canary: Canary
    tensors: tuple[str, ...]


class WeightStore:
    """The versions under one root directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def publish(
        self,
        run_id: str,
        version: int,
        step: int,
        write: Callable[[Path], None],
        *,
        canary: Canary,
        steps_per_version: int,
    ) -> Weights:
        """Store what `write(directory)` saves as a new version and return its announcement.

        Raises:
            WeightsError: the version exists already, or `write` left no safetensors file or a forbidden one.
        """
        final = self._directory(version)
        if final.exists():
            raise WeightsError(f"version {version} exists already at {final}: a version is never overwritten")
        with new_directory(final) as aside:
            write(aside)
            manifest = json.dumps(_manifest(aside, version, step, canary), indent=1, sort_keys=True).encode()
            (aside / MANIFEST).write_bytes(manifest)
        return Weights(
            run_id=run_id,
            version=version,
            step=step,
            uri=final.resolve().as_uri(),
            digest=hashlib.sha256(manifest).hexdigest(),
            steps_per_version=steps_per_version,
        )

    def fetch(self, weights: Weights) -> Snapshot:
        """Return the announced version, every byte verified.

        Raises:
            WeightsError: missing, truncated or altered; says expected and got.
        """
        directory = self._existing(weights.version)
        digest = hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()
        if digest != weights.digest:
            raise WeightsError(f"version {weights.version}: manifest digest expected {weights.digest}, got {digest}")
        return _verified(directory, weights.version)

    def find(self, version: int) -> Snapshot:
        """Return a stored version by its number alone, every byte verified against its manifest."""
        return _verified(self._existing(version), version)

    def announce(self, run_id: str, version: int, steps_per_version: int) -> Weights:
        """Return the announcement of a stored version, for a learner that comes back."""
        directory = self._existing(version)
        manifest = (directory / MANIFEST).read_bytes()
        return Weights(
            run_id=run_id,
            version=version,
            step=json.loads(manifest)["step"],
            uri=directory.resolve().as_uri(),
            digest=hashlib.sha256(manifest).hexdigest(),
            steps_per_version=steps_per_version,
        )

    def versions(self) -> list[int]:
        """Return the stored versions, oldest first."""
        return sorted(int(path.name[1:]) for path in self._root.glob("v[0-9]*") if path.name[1:].isdigit())

    def collect(self, keep: int, also: Collection[int] = ()) -> list[int]:
        """Delete all but the newest `keep` versions and those in `also`; return what was deleted.

        For the one publisher, between two versions: what a killed one left half written goes too.
        """
        for leftover in self._root.glob("v*.tmp"):
            shutil.rmtree(leftover)
        gone = [version for version in self.versions()[: -keep or None] if version not in also]
        for version in gone:
            # Renamed first: a reader sees a version whole or not at all.
            doomed = self._root / f"{self._directory(version).name}.gone.tmp"
            self._directory(version).rename(doomed)
            shutil.rmtree(doomed)
        return gone

    def _directory(self, version: int) -> Path:
        return self._root / f"v{version:06d}"

    def _existing(self, version: int) -> Path:
        directory = self._directory(version)
        if not (directory / MANIFEST).is_file():
            raise WeightsError(f"version {version}: expected a directory with {MANIFEST} at {directory}, found none")
        return directory


def _manifest(directory: Path, version: int, step: int, canary: Canary) -> dict[str, Any]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    forbidden = [path.name for path in files if path.suffix in _FORBIDDEN_SUFFIXES]
    if forbidden:
        raise WeightsError(f"version {version}: only safetensors and data files are published, got {forbidden}")
    tensors = sorted(name for path in files if path.suffix == ".safetensors" for name in _tensor_names(path))
    if not tensors:
        raise WeightsError(f"version {version}: expected a .safetensors file, got {[path.name for path in files]}")
    return {
        "version": version,
        "step": step,
        "files": {
            str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
        },
        "tensors": tensors,
        "canary": asdict(canary),
    }


def _verified(directory: Path, version: int) -> Snapshot:
    manifest = json.loads((directory / MANIFEST).read_bytes())
    if manifest["version"] != version:
        raise WeightsError(f"{directory}: expected version {version}, the manifest says {manifest['version']}")
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise WeightsError(f"version {version}: {name} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise WeightsError(
                f"version {version}: {name} expected {expected['bytes']} bytes, got {path.stat().st_size}"
            )
        digest = sha256(path)
        if digest != expected["sha256"]:
            raise WeightsError(f"version {version}: {name} expected sha256 {expected['sha256']}, got {digest}")
    canary = manifest["canary"]
    return Snapshot(
        directory=directory,
        version=version,
        step=manifest["step"],
        canary=Canary(
            token_ids=tuple(tuple(sequence) for sequence in canary["token_ids"]),
            prompt_lengths=tuple(canary["prompt_lengths"]),
            logprobs=tuple(canary["logprobs"]),
        ),
        tensors=tuple(manifest["tensors"]),
    )


def _tensor_names(path: Path) -> list[str]:
    # The safetensors format: a little-endian u64 length, then a JSON header keyed by tensor name.
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return [name for name in json.loads(file.read(length)) if name != "__metadata__"]
