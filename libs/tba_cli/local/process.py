"""One process through all its lives: started, found ended, started again after a growing pause, ended for good.

A life is a session of its own: Ctrl-C reaches the supervisor alone, and whatever a dead process leaves in its
session is killed before it starts again. Time comes in as an argument. Not thread-safe: the supervisor locks.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tba_cli.local.tether import start_tethered

HEALTHY_SECONDS: Final = 30.0  # a life this long forgets the failures before it
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """A process as data. `env` is added to the environment of the supervisor."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], bool] | None = None  # asked often, must answer soon; the next stage waits for it
    ready_seconds: float = 60.0
    finite: bool = False  # exit 0 is the end of its work, not a crash
    next_when_done: bool = False  # the next stage waits for the end of its work
    with_previous: bool = False  # of the same stage as the process before: they start, and stop, together
    grace_seconds: float = 10.0  # from SIGTERM to SIGKILL
    parked: bool = False  # not started before it is asked for


def backoff_seconds(failures: int) -> float:
    """The pause before the next life: 0.5 s after the first failure, doubled by each further one, at most 10 s."""
    return min(_FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 10), _LONGEST_PAUSE_SECONDS)


class Process:
    """The present life of a spec, and what is left of those before."""

    def __init__(self, spec: ProcessSpec, log: Path) -> None:
        self.spec = spec
        self.log = log
        self.pid: int | None = None
        self.done = False  # a finite process has ended well, and of its own accord
        self.lives = 0
        self.last_exit: int | None = None  # negative: the signal that ended it
        self.restart_at: float | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._started_at = 0.0
        self._signalled = False
        self._retired = False
        self.parked = spec.parked
        self._kill_at = float("inf")

    @property
    def restarts(self) -> int:
        """Lives after the first."""
        return max(0, self.lives - 1)

    def start(self, now: float) -> None:
        """Begin a life. Its output is appended to the log."""
        with self.log.open("ab") as output:
            self._popen = start_tethered(
                self.spec.command, env=os.environ | dict(self.spec.env), output=output, own_session=True
            )
        self.pid = self._popen.pid
        self.lives += 1
        self.restart_at = None
        self._signalled = False
        self._started_at = now

    def tend(self, now: float) -> bool:
        """Notice an end, or begin the next life when it is time. Return whether anything changed."""
        if self._popen is not None:
            if now >= self._kill_at:
                self.send_signal(signal.SIGKILL)
            return self._bury_if_ended(self._popen, now)
        if self.restart_at is not None and now >= self.restart_at:
            self.start(now)
            return True
        return False

    def is_ready(self) -> bool:
        """Whether the next stage need not wait for this process any longer."""
        if self.spec.next_when_done:
            return self.done
        return self.done or self.parked or (self.pid is not None and (self.spec.ready is None or self.spec.ready()))

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the present life, if there is one."""
        if self.pid is not None:
            self._signalled = True
            os.kill(self.pid, number)  # not reaped yet, so the number is still its own

    def park(self, now: float) -> None:
        """Ask the present life to end, and begin no other before `resume`."""
        self.parked, self.restart_at, self._kill_at = True, None, now + self.spec.grace_seconds
        self.send_signal(signal.SIGTERM)

    def resume(self, now: float) -> None:
        """Begin a life again: at once, or when the one that was asked to end has ended."""
        self.parked, self._kill_at, self._failures = False, float("inf"), 0
        if self.pid is None:
            self.restart_at = now

    def retire(self) -> None:
        """Ask the present life to end; there is no next one."""
        self._retired = True
        self.restart_at = None
        self.send_signal(signal.SIGTERM)

    def _bury_if_ended(self, life: subprocess.Popen[bytes], now: float) -> bool:
        # WNOWAIT leaves the dead unreaped: until then the number, and the session's, can be nobody else's.
        if os.waitid(os.P_PID, life.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
        with suppress(ProcessLookupError, PermissionError):  # the latter is macOS for "only the dead one is left"
            os.killpg(life.pid, signal.SIGKILL)
        self.last_exit = life.wait()
        self._popen = self.pid = None
        self.done = self.spec.finite and self.last_exit == 0 and not self._signalled
        if not self.done and not self._retired and not self.parked:
            self._failures = 1 if now - self._started_at >= HEALTHY_SECONDS else self._failures + 1
            self.restart_at = now + backoff_seconds(self._failures)
        return True
