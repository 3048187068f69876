"""Versions in an object store, through fsspec: the same files under `v000042/`, copied to this machine to be read.

Law: an object store has no rename, so the manifest comes last and goes first: a version is there when its manifest
is. Files travel many at once and in pieces, and enter this machine verified. Credentials come from the environment
as the store's own client reads them, so a URL never holds any.
"""

from __future__ import annotations

import hashlib
import logging
import pkgutil
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar

import fsspec

from tba_common.weights_cache import Held
from tba_common.weights_manifest import MANIFEST, Manifest, Snapshot, WeightsError, check_size, read_manifest, verify

AT_ONCE: Final = 8  # requests in flight: one connection does not fill the wire
PIECE_BYTES: Final = 16 * 2**20  # held in memory, AT_ONCE times

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Client:
    """A store's client: what it raises besides OSError if it cannot reach the store or is not let in; its options."""

    errors: tuple[str, ...] = ()
    options: Mapping[str, int] = field(default_factory=dict)


CLIENTS: Final = {
    "gs": _Client(("gcsfs.retry:HttpError", "google.auth.exceptions:GoogleAuthError", "aiohttp:ClientError")),
    "memory": _Client(),
    # Parts of one file in flight, 50 MB each, beside AT_ONCE files: the default of ten would take gigabytes.
    "s3": _Client(("botocore.exceptions:BotoCoreError",), {"max_concurrency": 4}),
}


@dataclass(frozen=True)
class _Piece:
    """Bytes `start` to `end` of a file."""

    name: str
    start: int
    end: int


class RemoteWeights:
    """The versions under one URL; `keep` gives them a place on this machine."""

    def __init__(self, url: str, keep: Callable[[str, Callable[[Path], None]], Held]) -> None:
        scheme, _, place = url.partition("://")
        if "@" in place:  # not shown: it may hold a secret
            raise WeightsError("weights URL: expected no @ in it, since credentials come from the environment")
        if scheme not in CLIENTS:
            raise WeightsError(f"weights URL: expected a path, file or one of {sorted(CLIENTS)}, got {scheme}")
        self._url, self._keep = url.rstrip("/"), keep
        # Another process writes there, so a listing that was true is not true for long.
        self._store, root = fsspec.core.url_to_fs(self._url, use_listings_cache=False, **CLIENTS[scheme].options)
        self._root = PurePosixPath(root)
        self._client_errors = tuple(pkgutil.resolve_name(name) for name in CLIENTS[scheme].errors)

    def url(self, version: int) -> str:
        """Where a version is."""
        return f"{self._url}/{_name(version)}"

    def add(self, version: int, fill: Callable[[Path], None]) -> None:
        """Keep what `fill(directory)` leaves, its manifest included, as a new version."""
        exists = f"version {version} exists already at {self.url(version)}: a version is never overwritten"
        with self._client():
            if self._store.exists(self._path(version, MANIFEST)):
                raise WeightsError(exists)
            self._clear(version)  # of what a killed publisher left
        with tempfile.TemporaryDirectory(prefix="tba-weights-") as aside:
            fill(Path(aside))
            with self._client():
                try:
                    self._upload(Path(aside), version)
                except FileExistsError as error:
                    raise WeightsError(exists) from error

    def manifest(self, version: int) -> bytes:
        """The manifest of a version as it was stored."""
        with self._client():
            try:
                manifest: bytes = self._store.cat_file(self._path(version, MANIFEST))
            except FileNotFoundError as error:
                raise WeightsError(
                    f"version {version}: expected {MANIFEST} at {self.url(version)}, found none"
                ) from error
        return manifest

    def snapshot(self, version: int, manifest: bytes) -> Snapshot:
        """The version on this machine, every byte verified against this manifest when it came."""
        expected = read_manifest(manifest, version)
        # Under the digest too: a store that was emptied and used again never yields what it held before.
        key = f"{_name(version)}-{hashlib.sha256(manifest).hexdigest()}"
        held = self._keep(key, partial(self._download, expected))
        return expected.snapshot(held.directory, held)

    def versions(self) -> list[int]:
        """The stored versions, oldest first."""
        return sorted(version for version, names in self._listing().items() if MANIFEST in names)

    def delete(self, version: int) -> None:
        """Delete a version, first of all the manifest, without which there is none."""
        with self._client():
            self._store.rm_file(self._path(version, MANIFEST))
            self._clear(version)

    def delete_unfinished(self) -> None:
        """Delete what a killed publisher left half uploaded or half deleted."""
        for version, names in self._listing().items():
            if MANIFEST not in names:
                with self._client():
                    self._clear(version)

    def _clear(self, version: int) -> None:
        _many_at_once(lambda name: self._store.rm_file(self._path(version, name)), self._sizes(version))

    def _upload(self, directory: Path, version: int) -> None:
        """Create, never overwrite: of two publishers, the store itself turns the second away."""

        def put(path: Path) -> None:
            remote = self._path(version, path.relative_to(directory).as_posix())
            self._store.put_file(str(path), remote, mode="create")

        manifest = directory / MANIFEST
        _many_at_once(put, (path for path in directory.rglob("*") if path.is_file() and path != manifest))
        self._store.pipe_file(self._path(version, MANIFEST), manifest.read_bytes(), mode="create")

    def _download(self, expected: Manifest, directory: Path) -> None:
        def get(piece: _Piece) -> None:
            data = self._store.cat_file(self._path(expected.version, piece.name), start=piece.start, end=piece.end)
            with (directory / piece.name).open("r+b") as file:
                file.seek(piece.start)
                file.write(data)

        began = time.monotonic()
        with self._client():
            sizes = self._sizes(expected.version)
            for name, file in expected.files.items():
                check_size(expected.version, name, file.bytes, sizes.get(name))
                _reserve(directory / name, file.bytes)
            _many_at_once(get, _pieces(expected))
        verify(directory, expected)
        fields = {"policy_version": expected.version, "seconds": round(time.monotonic() - began, 3)}
        log.info("weights downloaded", extra=fields)

    def _listing(self) -> dict[int, set[str]]:
        """Every version's names of files, finished or not."""
        with self._client():
            found = [re.fullmatch(r"v([0-9]+)/(.+)", name) for name in self._find(self._root)]
        names: dict[int, set[str]] = {}
        for match in filter(None, found):
            names.setdefault(int(match[1]), set()).add(match[2])
        return names

    def _sizes(self, version: int) -> dict[str, int]:
        """Bytes of each file of a version."""
        return self._find(self._root / _name(version))

    def _find(self, under: PurePosixPath) -> dict[str, int]:
        found = self._store.find(str(under), detail=True)
        return {str(PurePosixPath(path).relative_to(under)): int(info["size"]) for path, info in found.items()}

    def _path(self, version: int, name: str) -> str:
        return str(self._root / _name(version) / name)

    @contextmanager
    def _client(self) -> Iterator[None]:
        """Give what the store's client raises a name that our callers know; it never shows a secret."""
        try:
            yield
        except self._client_errors as error:
            raise WeightsError(f"{self._url}: {error}") from error


def _name(version: int) -> str:
    return f"v{version:06d}"


def _reserve(path: Path, size: int) -> None:
    """Make a file of `size` bytes that pieces can be written into in any order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def _pieces(manifest: Manifest) -> Iterator[_Piece]:
    for name, file in manifest.files.items():
        for start in range(0, file.bytes, PIECE_BYTES):
            yield _Piece(name, start, min(start + PIECE_BYTES, file.bytes))


def _many_at_once(action: Callable[[T], object], items: Iterable[T]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(action, items):
            pass
