"""The interpreter of the sandbox, `python -I -S code_child.py`; imports nothing of ours, never reads what it is for.

It forks once for each evaluation. The copy reads its call, gives up every right, says that it is locked, calls the
user's `score`, writes one line of JSON. From `_lock` on whatever runs may be hostile: the kernel holds it, not Python.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import os
import resource
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

LOCKED: Final = b"locked\n"
EXIT_CODE: Final = struct.Struct("=i")
MAX_FAULT_CHARACTERS: Final = 500

#: What `score` may import. No file can be opened once the lock is on, so they are all here before it.
MODULES: Final = (
    *("ast", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "difflib", "enum"),
    *("fractions", "functools", "heapq", "itertools", "json", "math", "numbers", "operator", "random", "re"),
    *("statistics", "string", "textwrap", "time", "typing", "unicodedata"),
)
_BEHIND_THEM: Final = ("_strptime",)  # imported by datetime when it is first used

_SOURCE: Final = "<score>"
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 1, 22, 38, 2


def main() -> None:
    """Serve evaluations one after the other, over the socket that is stdin, until it is closed.

    A call comes as two files: the call itself, and where to answer. The next message ends it, whatever it does, and
    is answered with its exit code.
    """
    for name in (*MODULES, *_BEHIND_THEM):
        importlib.import_module(name)
    with socket.socket(fileno=0) as channel:
        while (files := socket.recv_fds(channel, 1, 2)[1]) and (child := os.fork()):
            for file in files:
                os.close(file)
            channel.recv(1)
            os.kill(child, signal.SIGKILL)  # alone: it cannot have had children
            channel.send(EXIT_CODE.pack(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
        if files:
            channel.detach()
            _evaluate(*files)


def _evaluate(call_file: int, answer_file: int) -> None:
    os.dup2(call_file, 0)
    os.dup2(answer_file, 1)
    os.closerange(3, max(call_file, answer_file) + 1)
    sys.excepthook = _answer_fault
    with open(0, "rb") as stdin:
        call: dict[str, Any] = json.load(stdin)
    sys.meta_path[:] = [_NothingMore]
    sys.stdout = sys.stderr  # what `score` prints goes nowhere
    _lock(bytes.fromhex(call["filter"]), call["seconds"], call["memory_mb"] << 20)
    os.write(1, LOCKED)
    names: dict[str, Any] = {"__name__": "score"}
    exec(compile(call["source"], _SOURCE, "exec"), names)  # noqa: S102  # what this file is for
    value = names["score"](call["prompt"], call["completion"], call["reference"])
    if type(value) not in (bool, int, float):
        raise TypeError(f"score: expected to return a number, got {type(value).__name__}")
    if not math.isfinite(number := float(value)):
        raise ValueError(f"score: expected to return a finite number, got {number}")
    _answer(score=number)


def _lock(program: bytes, seconds: float, memory_bytes: int) -> None:
    """Limit what this process may use, then refuse all but the filter's system calls. Nothing undoes it.

    Raises:
        OSError: the kernel grants one of them not; says which.
    """
    with Path("/proc/self/statm").open() as pages:
        used_bytes = int(pages.read().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: used_bytes + memory_bytes,
        resource.RLIMIT_CPU: math.ceil(sum(os.times()[:2]) + seconds),
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, most in limits.items():
        resource.setrlimit(limit, (most, most))
    libc = ctypes.CDLL(None, use_errno=True)
    # Without the scorer nobody watches the wall clock.
    _control(libc, "death with the parent", _PR_SET_PDEATHSIG, signal.SIGKILL)
    _control(libc, "no new privileges", _PR_SET_NO_NEW_PRIVS, 1)
    instructions = ctypes.create_string_buffer(program)
    filter_ = _Filter(len(program) // 8, ctypes.addressof(instructions))
    _control(libc, "seccomp filter", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filter_))


class _Filter(ctypes.Structure):  # struct sock_fprog
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def _control(libc: ctypes.CDLL, what: str, option: int, value: int, *more: Any) -> None:
    arguments = [*more, *(ctypes.c_ulong(0) for _ in range(3 - len(more)))]
    if libc.prctl(option, ctypes.c_ulong(value), *arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


class _NothingMore:
    """Finds no module: those that are loaded are all there are."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        raise ImportError(f"module {name} is not in the sandbox: expected one of {', '.join(MODULES)}")


def _answer_fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    lines = [line for frame, line in traceback.walk_tb(trace) if frame.f_code.co_filename == _SOURCE]
    _answer(fault=f"{kind.__name__}: {error}"[:MAX_FAULT_CHARACTERS], line=lines[-1] if lines else None)


def _answer(**said: object) -> None:
    os.write(1, json.dumps(said).encode())
    os._exit(0)  # nothing that was registered for the end runs


if __name__ == "__main__":
    main()
