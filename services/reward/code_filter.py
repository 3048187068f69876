"""What code in the sandbox may ask of the kernel: a seccomp filter that is a list of what is allowed. Pure.

Memory, the clock, randomness, writing to what is open already, and the end. Nothing opens, connects, forks, executes,
signals or traces: what is not on the list answers EPERM, whoever asks and however.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from typing import Final

_MACHINES: Final = ("x86_64", "aarch64")
_AUDIT_ARCH: Final[Mapping[str, int]] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h

#: The numbers of each allowed system call on `_MACHINES`.
_ALLOWED: Final[Mapping[str, tuple[int, int]]] = {
    "write": (1, 64),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "futex": (202, 98),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
}

# One instruction of classic BPF: code, jump if true, jump if false, operand (linux/filter.h).
_INSTRUCTION: Final = struct.Struct("=HBBI")
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER_OFFSET, _ARCH_OFFSET = 0, 4  # in struct seccomp_data
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050000 | errno.EPERM, 0x7FFF0000


def filter_program(machine: str) -> bytes:
    """Return the filter for `platform.machine()`, as the kernel takes it.

    Raises:
        ValueError: no filter is known for such a machine.
    """
    if machine not in _MACHINES:
        raise ValueError(f"machine: expected one of {', '.join(_MACHINES)}, got {machine}")
    numbers = [of_machine[_MACHINES.index(machine)] for of_machine in _ALLOWED.values()]
    program = [
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_JUMP_IF_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),  # a second calling convention would give the numbers another meaning
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        *((_JUMP_IF_EQUAL, len(numbers) - index, 0, number) for index, number in enumerate(numbers)),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
