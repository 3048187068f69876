"""The sandbox seen from outside: a process for each evaluation, with nothing of ours in it and a time to end.

It is the copy of an interpreter that has no environment, no open file and no session of ours, and locks itself before
foreign code runs (code_child.py, code_filter.py). Needs Linux and no privilege, so it runs in a restricted pod.
"""

from __future__ import annotations

import json
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.reward.code_child import EXIT_CODE, LOCKED, MAX_FAULT_CHARACTERS
from services.reward.code_filter import filter_program

MAX_ANSWER_BYTES: Final = 16_384
_START_SECONDS: Final = 30.0
_GONE: Final = "the interpreter is gone"
_FLOAT32_MAX: Final = 3.4e38

# Isolated: no variables, no site packages, no directory of ours to import from; and no bytecode written.
_COMMAND: Final = (sys.executable, "-I", "-S", "-B", str(Path(__file__).with_name("code_child.py")))


class NoScore(Exception):
    """This evaluation has no score; says how it ended."""


class SandboxBroken(Exception):
    """A protection cannot be had on this machine; says which. Nothing foreign has run."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the user's function, and what it may use. `seconds` are of the wall, from the lock on."""

    source: str
    prompt: str
    completion: str
    reference: str | None
    seconds: float
    memory_mb: int  # beyond what the interpreter itself takes


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    score: Annotated[float, Field(ge=-_FLOAT32_MAX, le=_FLOAT32_MAX, allow_inf_nan=False)] | None = None
    fault: Annotated[str, Field(max_length=MAX_FAULT_CHARACTERS)] | None = None
    line: int | None = None


class Sandbox:
    """Evaluates one call at a time, each in a process of its own. A context manager; not thread-safe."""

    def __init__(self) -> None:
        try:
            self._filter: Final = filter_program(platform.machine()).hex()
        except ValueError as error:
            raise SandboxBroken(str(error)) from error
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._interpreter = subprocess.Popen(
                _COMMAND,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the interpreter whose copies evaluate."""
        return self._interpreter.pid

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
        self._interpreter.wait(_START_SECONDS)

    def evaluate(self, call: Call) -> float:
        """Return what `score(prompt, completion, reference)` returns, whatever the code tries instead.

        Raises:
            NoScore: it raised (says in which line), returned no finite number, took too long, or ended otherwise.
            SandboxBroken: the interpreter does not start, or cannot lock itself.
        """
        reading, writing = os.pipe()
        with FileIO(reading) as answers:
            # The call is a file in memory, not a pipe: nobody has to write while the other side reads.
            with FileIO(writing, "w"), os.fdopen(os.memfd_create("call"), "w+b") as file:
                file.write(json.dumps({**asdict(call), "filter": self._filter}).encode())
                file.seek(0)
                self._tell(file.fileno(), writing)
            try:
                said = _listen(answers, call.seconds)
            finally:
                exit_code = self._end()
        if not said.startswith(LOCKED):
            raise SandboxBroken(_read(said).fault or f"process ended with exit code {exit_code} before it was locked")
        return _score(said.removeprefix(LOCKED), exit_code)

    def _tell(self, *files: int) -> None:
        try:
            socket.send_fds(self._channel, [b"!"], files)
        except OSError as error:
            raise SandboxBroken(_GONE) from error

    def _end(self) -> int:
        self._tell()
        try:
            return int(EXIT_CODE.unpack(self._channel.recv(EXIT_CODE.size))[0])
        except (OSError, struct.error) as error:
            raise SandboxBroken(_GONE) from error


def _listen(answers: FileIO, seconds: float) -> bytes:
    """Read what an evaluation says until it ends. Its time counts from its lock: a busy machine starts it late."""
    poller = select.poll()
    poller.register(answers, select.POLLIN)
    said, is_locked, deadline = b"", False, time.monotonic() + _START_SECONDS
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1_000):
            if is_locked:
                raise NoScore(f"exceeded {seconds:g} s")
            raise SandboxBroken(f"process was not locked within {_START_SECONDS:g} s")
        part = answers.read(MAX_ANSWER_BYTES)
        if not part:
            return said
        said += part
        if len(said) > MAX_ANSWER_BYTES:
            raise NoScore(f"wrote more than {MAX_ANSWER_BYTES} bytes")
        if not is_locked and said.startswith(LOCKED):
            is_locked, deadline = True, time.monotonic() + seconds


def _score(said: bytes, exit_code: int) -> float:
    answer = _read(said)
    if exit_code == 0 and answer.score is not None:
        return answer.score
    if exit_code == 0 and answer.fault is not None:
        place = "" if answer.line is None else f" in line {answer.line}"
        raise NoScore(f"raised {answer.fault}{place}")
    how = f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with exit code {exit_code}"
    raise NoScore(f"{how} and gave no score")


def _read(said: bytes) -> _Answer:
    try:
        return _Answer.model_validate_json(said)
    except ValidationError:  # not what the harness writes: foreign code wrote it, or nobody did
        return _Answer()
