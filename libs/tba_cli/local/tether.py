"""A child that cannot outlive its parent: the kernel signals it when the parent dies, even by SIGKILL.

This file is also the program that stands between fork and exec: it asks for that signal, checks that the parent
is still there, and becomes the command, under the same pid. A program, because a `preexec_fn` runs Python in a
fork of a process with threads, which may deadlock. The signal is Linux's; elsewhere the child is an ordinary one.
"""

from __future__ import annotations

import os
import pwd
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ctypes

_PR_SET_PDEATHSIG: Final = 1  # these are Linux's own names: prctl(2), capset(2), capabilities(7)
_PR_SET_KEEPCAPS: Final = 8
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_CAP_DAC_OVERRIDE: Final = 1
_CAPABILITY_VERSION_3: Final = 0x20080522
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
    `account` is the name of another account to run as, which only root may ask for; it keeps root's access to files.
    `output` takes both streams.
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
    if sys.platform == "linux":
        import ctypes  # now: the other account may not be able to read this Python

        libc = ctypes.CDLL(None)
        if account != _SAME_ACCOUNT:
            libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
            _enter(account)
            _keep_file_access(libc)
        libc.prctl(_PR_SET_PDEATHSIG, signal_on_orphan, 0, 0, 0)  # last: a change of account clears it
    elif account != _SAME_ACCOUNT:
        _enter(account)
    if os.getppid() == parent:
        os.execvp(command[0], command)  # noqa: S606  # no shell is what we want


def _enter(account: str) -> None:
    entry = pwd.getpwnam(account)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def _keep_file_access(libc: ctypes.CDLL) -> None:
    """Keep root's way through closed directories, and nothing else of root; without it, they must be open.

    Opening them instead would last longer than the process, and others may close them again while it runs.
    """
    ours = 1 << _CAP_DAC_OVERRIDE
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = struct.pack("=6I", ours, ours, ours, 0, 0, 0)  # effective, permitted, inheritable: low words, high words
    libc.capset(header, data)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


if __name__ == "__main__":
    become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
