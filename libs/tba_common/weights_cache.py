"""Where versions of a remote store lie on this machine: a cache that its processes share, or a private copy.

Law: what enters was verified, and enters by a rename. What a process holds is locked and stays; a process that
dies lets go. The least recently used of the rest makes room.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from tba_common.disk import delete_directory, new_directory

KEEP: Final = 3  # what serves, what comes next, and one that an evaluation asked for


class Held:
    """A directory that stays while this object lives."""

    def __init__(self, directory: Path, let_go: Callable[[], object]) -> None:
        self.directory = directory
        weakref.finalize(self, let_go)


def private_copy(key: str, fill: Callable[[Path], None]) -> Held:
    """Fill a temporary directory, which goes when it is let go."""
    directory = Path(tempfile.mkdtemp(prefix=f"{key}-"))
    held = Held(directory, partial(shutil.rmtree, directory))
    fill(directory)
    return held


class WeightCache:
    """Directories by key; at most KEEP, and those that are held, of any process of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def keep(self, key: str, fill: Callable[[Path], None]) -> Held:
        """Return the directory of `key`; `fill(directory)` writes and verifies it where it is not there yet.

        One process at a time: of several that want the same version one downloads it, and the others find it.
        """
        directory = self._root / key
        with self._alone():
            if not directory.exists():
                self._make_room()
                with new_directory(directory) as aside:
                    fill(aside)
            os.utime(directory)
            return _hold(directory)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self) -> None:
        """Delete what a killed download left, and all that is too many once one more comes."""
        for leftover in self._root.glob("*.tmp"):
            shutil.rmtree(leftover)
        kept = sorted(
            (path for path in self._root.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime_ns
        )
        for directory in kept[: 1 - KEEP]:
            if not _is_held(directory):
                delete_directory(directory)


def _hold(directory: Path) -> Held:
    descriptor = os.open(directory, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return Held(directory, partial(os.close, descriptor))


def _is_held(directory: Path) -> bool:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
