"""Processes as children: started in order, kept alive, followed by their logs, stopped in reverse.

A local crash behaves as a pod's does: the process starts again after a growing pause. One thread starts, watches
and ends them all, and lives as long as they do, because the kernel ties a child to the thread that started it.
No child outlives that thread, even when the whole supervisor is killed.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from tba_cli.local import state_file
from tba_cli.local.log_tail import LogTail, last_lines
from tba_cli.local.process import Process, ProcessSpec
from tba_cli.local.state_file import ProcessState, StackState
from tba_common.settings import WRONG_SETTINGS

OnLine = Callable[[str, str], None]  # (process name, line of its log)

STATE_FILE: Final = "processes.json"
_TURN_SECONDS: Final = 0.05
_LIVES_TO_BECOME_READY: Final = 5  # about 8 s of failing and pausing

log = logging.getLogger(__name__)


class StartError(Exception):
    """A process did not become ready; the message has the end of its log."""


class Supervisor:
    """The processes of `specs` under `directory`, as a context manager or with `start` and `stop`.

    `on_line` gets every line of their logs, which lie in `directory/logs/<name>.log`.
    """

    def __init__(self, specs: Sequence[ProcessSpec], directory: Path, *, on_line: OnLine | None = None) -> None:
        logs = directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._state_path = directory / STATE_FILE
        self._processes = {spec.name: Process(spec, logs / f"{spec.name}.log") for spec in specs}
        self._stages = _stages(list(self._processes.values()))
        self._tails = {name: LogTail(process.log) for name, process in self._processes.items()}
        self._on_line = on_line
        self._lock = threading.Lock()  # a pid that is read under it is not reaped meanwhile
        self._stop = threading.Event()
        self._started = threading.Event()
        self._ended = threading.Event()
        self._failure: StartError | None = None
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Return when every process is ready.

        Raises:
            StartError: one was not; everything has been stopped again.
        """
        self._thread.start()
        try:
            self._started.wait()
        except KeyboardInterrupt:
            self.stop()
            raise
        if not self.running and not self._stop.is_set():
            self._thread.join()
            raise self._failure or StartError("the supervisor failed: its traceback says why")

    def stop(self) -> None:
        """Stop every process, the last started first, and return when none is left."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def running(self) -> bool:
        """Whether processes are watched: false before the start, and after the end for whatever reason."""
        return self._started.is_set() and not self._ended.is_set()

    def pids(self) -> dict[str, int]:
        """The processes that run now."""
        with self._lock:
            return {name: process.pid for name, process in self._processes.items() if process.pid is not None}

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a process as the world would; it will be started again."""
        with self._lock:
            self._processes[name].send_signal(number)

    def park(self, name: str) -> None:
        """End a process until it is asked for again."""
        with self._lock:
            self._processes[name].park(time.monotonic())

    def resume(self, name: str) -> None:
        """Start a parked process."""
        with self._lock:
            self._processes[name].resume(time.monotonic())

    def is_parked(self, name: str) -> bool:
        """Whether a process is not wanted now; it may still be ending."""
        return self._processes[name].parked

    def is_ready(self, name: str) -> bool:
        """Whether a process runs and says that it is ready."""
        process = self._processes[name]
        return process.pid is not None and not process.parked and process.is_ready()

    def restarts(self) -> dict[str, int]:
        """How often each process was started again."""
        return {name: process.restarts for name, process in self._processes.items()}

    def last_exits(self) -> dict[str, int | None]:
        """How each process ended the last time: its exit code, negative for a signal; None if it never has."""
        return {name: process.last_exit for name, process in self._processes.items()}

    def done(self, name: str) -> bool:
        """Whether a finite process has done its work."""
        return self._processes[name].done

    def log_of(self, name: str) -> Path:
        """Where a process writes."""
        return self._processes[name].log

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            for stage in self._stages:
                self._bring_up(stage)
            self._started.set()
            while not self._stop.wait(_TURN_SECONDS):
                self._turn()
        except StartError as failure:
            self._failure = failure
        finally:
            self._ended.set()
            for stage in reversed(self._stages):
                self._bring_down(stage)
            self._state_path.unlink(missing_ok=True)
            self._started.set()

    def _bring_up(self, stage: list[Process]) -> None:
        now = time.monotonic()
        if self._stop.is_set():
            return
        with self._lock:
            for process in stage:
                if not process.parked:
                    process.start(now)
        self._write_state()
        waiting = stage
        while (waiting := [process for process in waiting if not process.is_ready()]) and not self._stop.is_set():
            for process in waiting:
                _check_patience(process, time.monotonic() - now)
            self._turn()
            self._stop.wait(_TURN_SECONDS)

    def _bring_down(self, stage: list[Process]) -> None:
        started = time.monotonic()
        with self._lock:
            for process in stage:
                process.retire()
        while any(process.pid is not None for process in stage):
            with self._lock:
                for process in stage:
                    if time.monotonic() - started > process.spec.grace_seconds:
                        process.send_signal(signal.SIGKILL)
            self._turn()
            time.sleep(_TURN_SECONDS)

    def _turn(self) -> None:
        with self._lock:
            changed = [process for process in self._processes.values() if process.tend(time.monotonic())]
        for process in changed:
            _report(process)
        if changed:
            self._write_state()
        if self._on_line is not None:
            for name, tail in self._tails.items():
                for line in tail.lines():
                    self._on_line(name, line)

    def _write_state(self) -> None:
        own = ProcessState(
            name="supervisor", pid=os.getpid(), birth=state_file.birth(os.getpid()), restarts=0, log=Path()
        )
        with self._lock:
            processes = tuple(map(_state_of, self._processes.values()))
        state_file.write(self._state_path, StackState(supervisor=own, processes=processes))


def _stages(processes: list[Process]) -> list[list[Process]]:
    stages: list[list[Process]] = []
    for process in processes:
        if process.spec.with_previous and stages:
            stages[-1].append(process)
        else:
            stages.append([process])
    return stages


def _check_patience(process: Process, waited_seconds: float) -> None:
    lives = 1 if process.last_exit == WRONG_SETTINGS else _LIVES_TO_BECOME_READY
    crashed = process.restart_at is not None and process.lives >= lives
    if crashed or waited_seconds > process.spec.ready_seconds:
        raise StartError(
            f"{process.spec.name} was not ready after {waited_seconds:.0f} s and {process.lives} starts"
            f" (last exit: {process.last_exit}). The end of {process.log}:\n{last_lines(process.log, 15)}"
        )


def _report(process: Process) -> None:
    fields = {"child": process.spec.name, "pid": process.pid, "code": process.last_exit}
    if process.pid is not None:
        log.info("process started again", extra={**fields, "restarts": process.restarts})
    elif process.restart_at is not None:
        log.warning("process ended and will be started again", extra=fields)
    else:
        log.info("process ended", extra=fields)


def _state_of(process: Process) -> ProcessState:
    pid = process.pid
    return ProcessState(
        name=process.spec.name,
        pid=pid,
        birth=None if pid is None else state_file.birth(pid),
        restarts=process.restarts,
        log=process.log,
    )
