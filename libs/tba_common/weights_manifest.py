"""What a version consists of: `manifest.json`, and the proof of a directory against it.

Law: the manifest holds the size and sha256 of every file, and the announcement the sha256 of the manifest, so that
one digest decides whether all the bytes are the learner's. Safetensors only.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from pydantic import TypeAdapter, ValidationError

from tba_common.disk import sha256

MANIFEST: Final = "manifest.json"
_FORBIDDEN_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".py"})


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
    """A verified version on local disk: a complete Hugging Face folder.

    The directory of a remote version stays while its snapshot lives; `held` sees to that.
    """

    directory: Path
    version: int
    step: int
    canary: Canary
    tensors: tuple[str, ...]
    held: object = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class StoredFile:
    """What a file must be."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a version must be; files by their path in it, with forward slashes."""

    version: int
    step: int
    files: Mapping[str, StoredFile]
    tensors: tuple[str, ...]
    canary: Canary

    def snapshot(self, directory: Path, held: object = None) -> Snapshot:
        """Name a directory that was verified."""
        return Snapshot(directory, self.version, self.step, self.canary, self.tensors, held)


_MANIFEST: Final = TypeAdapter(Manifest)


def write_manifest(directory: Path, version: int, step: int, canary: Canary) -> None:
    """Describe what lies in `directory`, beside it.

    Raises:
        WeightsError: there is no safetensors file, or a forbidden one.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    _refuse_forbidden(version, (path.name for path in files))
    tensors = sorted(name for path in files if path.suffix == ".safetensors" for name in _tensor_names(path))
    if not tensors:
        raise WeightsError(f"version {version}: expected a .safetensors file, got {[path.name for path in files]}")
    stored = {path.relative_to(directory).as_posix(): StoredFile(path.stat().st_size, sha256(path)) for path in files}
    manifest = Manifest(version, step, stored, tuple(tensors), canary)
    (directory / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1, sort_keys=True))


def read_manifest(data: bytes, version: int) -> Manifest:
    """Read the manifest of `version`.

    Raises:
        WeightsError: it is none, is another version's, or names forbidden files, or some outside the version.
    """
    try:
        manifest = _MANIFEST.validate_json(data)
    except ValidationError as error:
        raise WeightsError(f"version {version}: {MANIFEST} does not read: {error.errors()[0]['msg']}") from error
    if manifest.version != version:
        raise WeightsError(f"expected version {version}, the manifest says {manifest.version}")
    outside = [
        name for name in manifest.files if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
    ]
    if outside:
        raise WeightsError(f"version {version}: expected files of the version, the manifest names {outside}")
    _refuse_forbidden(version, manifest.files)
    return manifest


def verify(directory: Path, manifest: Manifest) -> None:
    """Check every byte, and that there is no file that the manifest does not name: loaders look for more than one.

    Raises:
        WeightsError: a file is missing, truncated, altered or extra; says expected and got.
    """
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    if extra := sorted(found - manifest.files.keys() - {MANIFEST}):
        raise WeightsError(f"version {manifest.version}: expected no file but those of the manifest, got {extra[:3]}")
    for name, expected in manifest.files.items():
        path = directory / name
        check_size(manifest.version, name, expected.bytes, path.stat().st_size if path.is_file() else None)
        digest = sha256(path)
        if digest != expected.sha256:
            raise WeightsError(f"version {manifest.version}: {name} expected sha256 {expected.sha256}, got {digest}")


def check_size(version: int, name: str, expected: int, got: int | None) -> None:
    """Compare sizes in bytes; None means that there is no such file.

    Raises:
        WeightsError: they differ.
    """
    if got is None:
        raise WeightsError(f"version {version}: {name} is missing")
    if got != expected:
        raise WeightsError(f"version {version}: {name} expected {expected} bytes, got {got}")


def _refuse_forbidden(version: int, names: Iterable[str]) -> None:
    if forbidden := [name for name in names if PurePosixPath(name).suffix in _FORBIDDEN_SUFFIXES]:
        raise WeightsError(f"version {version}: only safetensors and data files are published, got {forbidden}")


def _tensor_names(path: Path) -> list[str]:
    # The safetensors format: a little-endian u64 length, then a JSON header keyed by tensor name.
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return [name for name in json.loads(file.read(length)) if name != "__metadata__"]
