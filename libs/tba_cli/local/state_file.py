"""What runs in a directory, on disk: for `tba down`, and to find what a killed supervisor left behind.

A pid alone may be another process by now. With the time of its birth it is an identity.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

_POLL_SECONDS: Final = 0.05


class ProcessState(BaseModel):
    """One process: where it runs, since when (kernel ticks since boot), and what it writes."""

    model_config = ConfigDict(frozen=True)

    name: str
    pid: int | None
    birth: int | None
    restarts: int
    log: Path


class StackState(BaseModel):
    """A supervisor and its processes."""

    model_config = ConfigDict(frozen=True)

    supervisor: ProcessState
    processes: tuple[ProcessState, ...]


def birth(pid: int) -> int | None:
    """When a living process was born, in kernel ticks since boot; None for one that ended, or without /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def lives(process: ProcessState) -> bool:
    """Whether the very process that was written down is still there."""
    return process.pid is not None and process.birth is not None and birth(process.pid) == process.birth


def write(path: Path, state: StackState) -> None:
    """Replace the file at once, so that a reader sees the old state or the new one."""
    aside = path.with_suffix(".tmp")
    aside.write_text(state.model_dump_json(indent=2))
    aside.replace(path)


def read(path: Path) -> StackState | None:
    """The state that was last written; it may be that of a supervisor that was killed."""
    return StackState.model_validate_json(path.read_text()) if path.exists() else None


def end(processes: Sequence[ProcessState], *, grace_seconds: float) -> None:
    """End those that still live: SIGTERM, and SIGKILL after the grace period."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in filter(lives, processes):
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, number)
        deadline = time.monotonic() + grace_seconds
        while any(map(lives, processes)) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
