"""Weights at rest: immutable versions with a manifest, `v000042/`, on a shared disk or in an object store.

Law: never overwritten, and announced only when whole. Whoever loads a version checks the manifest against the
announced digest; whoever brings it to this machine first checks every byte of it against the manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tba_common.messages import Weights
from tba_common.weights_cache import WeightCache, private_copy
from tba_common.weights_local import LocalWeights
from tba_common.weights_manifest import MANIFEST, Canary, Snapshot, WeightsError, read_manifest, write_manifest
from tba_common.weights_remote import RemoteWeights

__all__ = ["MANIFEST", "Canary", "Snapshot", "WeightStore", "WeightsError"]


class WeightStore:
    """The versions at one place: a path, or a file://, s3://, gs:// or memory:// URL.

    Versions of a remote place are kept in `cache_directory` while they are in use, and the newest of them longer;
    without it a version is copied to a temporary directory for as long as its snapshot lives.

    Raises:
        WeightsError: the URL is of another kind, or holds credentials.
    """

    def __init__(self, url: str | Path, cache_directory: Path | None = None) -> None:
        self._place = _place(str(url), cache_directory)

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

        def fill(directory: Path) -> None:
            write(directory)
            write_manifest(directory, version, step, canary)

        self._place.add(version, fill)
        return self.announce(run_id, version, steps_per_version)

    def fetch(self, weights: Weights) -> Snapshot:
        """Return the announced version on local disk, verified.

        Raises:
            WeightsError: missing, truncated or altered; says expected and got.
        """
        manifest = self._place.manifest(weights.version)
        digest = hashlib.sha256(manifest).hexdigest()
        if digest != weights.digest:
            raise WeightsError(f"version {weights.version}: manifest digest expected {weights.digest}, got {digest}")
        return self._place.snapshot(weights.version, manifest)

    def find(self, version: int) -> Snapshot:
        """Return a stored version by its number alone, verified against its manifest."""
        return self._place.snapshot(version, self._place.manifest(version))

    def announce(self, run_id: str, version: int, steps_per_version: int) -> Weights:
        """Return the announcement of a stored version, for a learner that comes back."""
        manifest = self._place.manifest(version)
        return Weights(
            run_id=run_id,
            version=version,
            step=read_manifest(manifest, version).step,
            uri=self._place.url(version),
            digest=hashlib.sha256(manifest).hexdigest(),
            steps_per_version=steps_per_version,
        )

    def versions(self) -> list[int]:
        """Return the stored versions, oldest first."""
        return self._place.versions()

    def collect(self, keep: int, also: Collection[int] = ()) -> list[int]:
        """Delete all but the newest `keep` versions and those in `also`; return what was deleted.

        For the one publisher, between two versions: what a killed one left half written goes too.
        """
        self._place.delete_unfinished()
        gone = [version for version in self.versions()[: -keep or None] if version not in also]
        for version in gone:
            self._place.delete(version)
        return gone


def _place(url: str, cache_directory: Path | None) -> LocalWeights | RemoteWeights:
    if "://" not in url:
        return LocalWeights(Path(url))
    if url.startswith("file://"):
        if not url.startswith("file:///"):
            raise WeightsError(f"weights URL: expected file:///path, got {url}")
        return LocalWeights(Path(unquote(urlsplit(url).path)))
    keep = private_copy if cache_directory is None else WeightCache(cache_directory).keep
    return RemoteWeights(url, keep)
