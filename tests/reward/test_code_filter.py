"""The filter as the kernel runs it: three kinds of instruction, so a few lines can run it here."""

from __future__ import annotations

import struct

import pytest

from services.reward.code_filter import filter_program

ALLOW, EPERM, KILL = 0x7FFF0000, 0x00050001, 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
#: openat, socket, connect, clone, clone3, execve, kill, ptrace, mount, prctl, io_uring_setup, close, read.
DANGEROUS = {
    "x86_64": (257, 41, 42, 56, 435, 59, 62, 101, 165, 157, 425, 3, 0),
    "aarch64": (56, 198, 203, 220, 435, 221, 129, 117, 40, 167, 425, 57, 63),
}
WRITE = {"x86_64": 1, "aarch64": 64}


def verdict(program: bytes, *, arch: int, number: int) -> int:
    """What the kernel would do with this system call."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    at, value = 0, 0
    while True:
        code, if_true, if_false, operand = instructions[at]
        match code:
            case 0x20:
                value = {0: number, 4: arch}[operand]
            case 0x15:
                at += if_true if value == operand else if_false
            case 0x06:
                return int(operand)
        at += 1


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_what_could_reach_anything_is_refused_on_every_machine(machine: str) -> None:
    program = filter_program(machine)
    verdicts = {number: verdict(program, arch=ARCH[machine], number=number) for number in DANGEROUS[machine]}
    assert verdicts == dict.fromkeys(DANGEROUS[machine], EPERM)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_an_answer_may_be_written(machine: str) -> None:
    assert verdict(filter_program(machine), arch=ARCH[machine], number=WRITE[machine]) == ALLOW


def test_nineteen_calls_and_no_more_are_allowed() -> None:
    program = filter_program("x86_64")
    numbers = [*range(1024), *range(0x40000000, 0x40000000 + 1024)]  # the second kind is x32
    assert sum(verdict(program, arch=ARCH["x86_64"], number=number) == ALLOW for number in numbers) == 19


def test_a_second_calling_convention_kills() -> None:
    assert verdict(filter_program("x86_64"), arch=0x40000003, number=1) == KILL  # i386, where 1 is exit


def test_a_machine_without_a_known_filter_is_refused() -> None:
    with pytest.raises(ValueError, match="machine: expected one of x86_64, aarch64, got riscv64"):
        filter_program("riscv64")
