"""Hand-offs on disk: a directory appears whole or not at all, and is there after a power cut."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """Give a directory to fill aside; on leaving without an error it is synced and renamed to `final`.

    Raises:
        FileExistsError: `final` is there already, and was not touched.
    """
    if final.exists():
        raise FileExistsError(f"{final} exists already")
    aside = final.with_name(f"{final.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    for path in [*aside.rglob("*"), aside]:
        _sync(path)
    aside.rename(final)
    _sync(final.parent)


def delete_directory(directory: Path) -> None:
    """Delete a directory; nobody sees a part of it, because it is renamed first."""
    doomed = directory.with_name(f"{directory.name}.gone.tmp")
    directory.rename(doomed)
    shutil.rmtree(doomed)


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
