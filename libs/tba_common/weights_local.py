"""Versions on a disk that learner and generators share: `v000042/`, read in place.

Law: written aside, synced, renamed; renamed again before it is deleted. Nobody sees a part of a version.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tba_common.disk import delete_directory, new_directory
from tba_common.weights_manifest import MANIFEST, Snapshot, WeightsError, read_manifest, verify


class LocalWeights:
    """The versions under one root directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def url(self, version: int) -> str:
        """Where a version is."""
        return self._directory(version).resolve().as_uri()

    def add(self, version: int, fill: Callable[[Path], None]) -> None:
        """Keep what `fill(directory)` leaves, its manifest included, as a new version."""
        final = self._directory(version)
        if final.exists():
            raise WeightsError(f"version {version} exists already at {final}: a version is never overwritten")
        with new_directory(final) as aside:
            fill(aside)

    def manifest(self, version: int) -> bytes:
        """The manifest of a version as it was stored."""
        directory = self._directory(version)
        if not (directory / MANIFEST).is_file():
            raise WeightsError(f"version {version}: expected a directory with {MANIFEST} at {directory}, found none")
        return (directory / MANIFEST).read_bytes()

    def snapshot(self, version: int, manifest: bytes) -> Snapshot:
        """The version where it lies, every byte verified against this manifest."""
        directory, expected = self._directory(version), read_manifest(manifest, version)
        verify(directory, expected)
        return expected.snapshot(directory)

    def versions(self) -> list[int]:
        """The stored versions, oldest first."""
        return sorted(int(path.name[1:]) for path in self._root.glob("v[0-9]*") if path.name[1:].isdigit())

    def delete(self, version: int) -> None:
        """Delete a version."""
        delete_directory(self._directory(version))

    def delete_unfinished(self) -> None:
        """Delete what a killed publisher left half written or half deleted."""
        for leftover in self._root.glob("v*.tmp"):
            shutil.rmtree(leftover)

    def _directory(self, version: int) -> Path:
        return self._root / f"v{version:06d}"
