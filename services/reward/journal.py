"""Which rollouts are in the scorer, on disk: the process after one that died learns what it may have died of.

An exception names its rollout. A kill for want of memory or a crash of native code names none, nothing is committed,
and the same rollout would come again for ever. So each is written down before it is visited. Whoever finds a journal
that was not closed visits the rollouts in it with nothing beside them, until one is proven to be deadly.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import logging
import os
import stat
import tempfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import Final

from services.reward.settings import RewardSettings
from tba_common.record import Record

#: A rollout that as many processes died with is deadly: the first had others in the scorer, all after it had none.
DEADLY: Final = 3
_KEPT: Final = 1_000  # what was proven deadly stays, as it may come again before its offset is committed
_FILE_BYTES: Final = 1 << 20

log = logging.getLogger(__name__)


class Journal:
    """The rollouts that are in the scorer, and those that processes died with. A context manager; not thread-safe.

    What a write hands to the kernel outlives the process, so nothing is synced: a machine that dies takes both along.
    """

    def __init__(self, directory: Path, name: str) -> None:
        """Go on with the journal of a process that is gone; two that live never share one.

        Raises:
            OSError: the directory cannot be written to, or belongs to somebody else.
        """
        self._path, self._file = _first_free(_own(directory), name)
        inside, deaths = _read(self._file)
        counted = deaths | {key: deaths.get(key, 0) + 1 for key in inside}
        self._deaths = dict(list(counted.items())[-_KEPT:])
        self._inside: dict[str, None] = {}
        if inside:
            log.warning("the process before this one died at work", extra={"rollouts": len(inside)})
        self._write()

    def deaths(self, record: Record) -> int:
        """How many processes died with this rollout in the scorer."""
        return self._deaths.get(_key(record), 0) if self._deaths else 0

    def begin(self, record: Record) -> None:
        """Write down that a rollout goes into the scorer."""
        self._inside[_key(record)] = None
        self._write()

    def end(self, record: Record) -> None:
        """Write down that it came out alive: whatever died with it before did not die of it."""
        key = _key(record)
        self._inside.pop(key, None)
        self._deaths.pop(key, None)
        self._write()

    def forget(self) -> None:
        """Take what is in the scorer for innocent: this process is asked to end, or ends by an exception."""
        self._inside.clear()
        self._write()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.forget()
        if not self._deaths:
            self._path.unlink(missing_ok=True)
        os.close(self._file)

    def _write(self) -> None:
        line = json.dumps({"inside": list(self._inside), "deaths": self._deaths}).encode() + b"\n"
        os.pwrite(self._file, line, 0)  # one call, so that a kill leaves the old line or the new one
        os.ftruncate(self._file, len(line))


def open_journal(service: str, settings: RewardSettings) -> Journal:
    """The journal of a scorer process, in the temporary directory: a container that is started again keeps it."""
    whose = f"{settings.kafka_servers}/{settings.run_id}/{settings.process_index}"
    name = f"{service}-{hashlib.sha256(whose.encode()).hexdigest()[:12]}"
    return Journal(Path(tempfile.gettempdir()) / f"tba-{os.getuid()}", name)


def _own(directory: Path) -> Path:
    """The directory, made if need be; in a place where everybody may write, it may be somebody else's trap."""
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{directory}: expected a directory of user {os.getuid()}, got one of {found.st_uid}")
    return directory


def _first_free(directory: Path, name: str) -> tuple[Path, int]:
    for number in itertools.count():
        path = directory / f"{name}.{number}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel gives it back however its holder dies
        except BlockingIOError:
            os.close(file)
        else:
            return path, file
    raise AssertionError("count() does not end")


def _read(file: int) -> tuple[list[str], dict[str, int]]:
    line = os.pread(file, _FILE_BYTES, 0).partition(b"\n")[0]
    if not line:
        return [], {}
    try:
        found = json.loads(line)
        return [str(key) for key in found["inside"]], {str(key): int(n) for key, n in found["deaths"].items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        log.warning("the journal cannot be read: it begins anew", extra={"error": repr(error)})
        return [], {}


def _key(record: Record) -> str:
    """Its place, which a replay changes, and its content: a broker that lost its log gives a place to another."""
    return f"{record.topic}/{record.partition}/{record.offset}/{zlib.crc32(record.value):08x}"
