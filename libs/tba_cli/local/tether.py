"""A child that cannot outlive its parent: the kernel signals it when the parent dies, even by SIGKILL.

This file is also the program that stands between fork and exec: it asks for that signal, checks that the parent
is still there, and becomes the command, under the same pid. A program, because a `preexec_fn` runs Python in a
fork of a process with threads, which may deadlock. The signal is Linux's; elsewhere the child is an ordinary one.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

_PR_SET_PDEATHSIG: Final = 1
_SAME_ACCOUNT: Final = ""


def start_tethered(
    command: Sequence[str],
    *,
    signal_on_orphan: signal.Signals = signal.SIGTERM,
    account: str = _SAME_ACCOUNT,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    output: IO[bytes] | int | None = None,
    own_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `command` so that it gets `signal_on_orphan` when the calling thread ends.

    The thread matters: Linux takes the thread that forked for the parent, so start children from one that stays.
    `account` is the name of another account to run as, which only root may ask for. `output` takes both streams.
    """
    launcher = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(signal_on_orphan))]
    return subprocess.Popen(
        [*launcher, account, *command],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        start_new_session=own_session,
    )


def become(parent: int, signal_on_orphan: int, account: str, command: list[str]) -> None:
    """Tie this process to `parent`, then replace it by `command`; return only when the parent is already gone."""
    tie = _tie()  # loaded first: the other account may not be able to read this Python
    if account != _SAME_ACCOUNT:
        entry = pwd.getpwnam(account)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    tie(signal_on_orphan)  # last: a change of account clears it
    if os.getppid() == parent:
        os.execvp(command[0], command)  # noqa: S606  # no shell is what we want


def _tie() -> Callable[[int], object]:
    if sys.platform != "linux":
        return lambda number: None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    return lambda number: prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


if __name__ == "__main__":
    become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
