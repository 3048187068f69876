"""The platform on one machine as one thing: up, watched, down.

    with Stack(StackOptions(directory=Path("runs/local"), model="runs/demo/policy")) as stack:
        httpx.get(f"{stack.url}/v1/status")

Every stack has its own directory and its own loopback ports, so several live side by side.
"""

from __future__ import annotations

import fcntl
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Final

from tba_cli.local import services, state_file
from tba_cli.local.generator_pool import GeneratorPool
from tba_cli.local.log_tail import last_lines
from tba_cli.local.ports import LOOPBACK, answers, free_ports
from tba_cli.local.services import StackOptions
from tba_cli.local.supervisor import STATE_FILE, OnLine, StartError, Supervisor

__all__ = ["AlreadyRunning", "Stack", "StackOptions", "StartError", "is_running"]

_LEFTOVER_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.1


class AlreadyRunning(Exception):
    """Another stack lives in the directory."""


class Stack:
    """A running platform, as a context manager or with `start` and `stop`."""

    def __init__(self, options: StackOptions, *, on_line: OnLine | None = None) -> None:
        ports = iter(free_ports(3 + options.processes))
        self.options = replace(
            options,
            directory=options.directory.resolve(),
            api_port=options.api_port or next(ports),
            kafka_port=options.kafka_port or next(ports),
            postgres_port=options.postgres_port or next(ports),
        )
        self.directory = self.options.directory
        self.url = f"http://{LOOPBACK}:{self.options.api_port}"
        self.kafka_servers = services.kafka_servers(self.options)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.database_url = services.database_url(self.options)
        self.supervisor = Supervisor(services.specs(self.options, ports), self.directory, on_line=on_line)
        self.generators = GeneratorPool(
            self.supervisor,
            services.generator_names(self.options),
            services.process_count_file(self.options),
            running=self.options.first_generators,
        )
        self._held = ExitStack()

    def start(self) -> None:
        """Return when every process is ready.

        Raises:
            AlreadyRunning: another stack lives in the directory.
            StartError: the model's folder has no policy, a port is taken, or a process did not become ready;
                everything has been stopped again.
        """
        with ExitStack() as held:
            _lock(held.enter_context((self.directory / "lock").open("w")), self.directory)
            _end_leftovers(self.directory / STATE_FILE)
            _check_model(self.options.model)
            _check_ports(self.options)
            self.supervisor.start()
            self._held = held.pop_all()

    def stop(self) -> None:
        """Stop every process, and return when none is left."""
        self.supervisor.stop()
        self._held.close()

    def pids(self) -> dict[str, int]:
        """The processes that run now, by name."""
        return self.supervisor.pids()

    def restarts(self) -> dict[str, int]:
        """How often each process was started again, by name."""
        return self.supervisor.restarts()

    def last_exits(self) -> dict[str, int | None]:
        """How each process ended the last time, by name: its exit code, negative for a signal."""
        return self.supervisor.last_exits()

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a process as the world would; it will be started again."""
        self.supervisor.kill(name, number)

    def learner_is_done(self) -> bool:
        """Whether the learner has taken its last step (TBA_MAX_STEPS)."""
        return self.supervisor.done("tba-learner")

    def wait_for(self, condition: Callable[[], bool], *, seconds: float, what: str) -> None:
        """Return as soon as `condition()` holds; it is asked ten times a second.

        Raises:
            TimeoutError: it did not hold in time, or the stack ended; has `what` was awaited and the ends of all logs.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or not self.supervisor.running:
                fate = f"restarts: {self.restarts()}" if self.supervisor.running else "the stack has ended"
                raise TimeoutError(f"no {what} within {seconds:.0f} s; {fate}\n{self._logs()}")
            time.sleep(_POLL_SECONDS)

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _logs(self) -> str:
        logs = sorted((self.directory / "logs").glob("*.log"))
        return "\n".join(f"--- {log.name}\n{last_lines(log, 10)}" for log in logs)


def is_running(directory: Path) -> bool:
    """Whether a stack runs in a directory, which need not exist."""
    path = directory / "lock"
    if not path.exists():
        return False
    try:
        with path.open("w") as file:
            _lock(file, directory)
    except AlreadyRunning:
        return True
    return False


def _lock(file: IO[str], directory: Path) -> None:
    # The kernel gives the lock back however its holder dies.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise AlreadyRunning(f"another stack is running in {directory}") from error


def _check_model(model: str) -> None:
    """Refuse a folder without a policy; whether a hub id exists only the hub can say."""
    folder = Path(model)
    is_folder = folder.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1
    if is_folder and not (folder / "config.json").is_file():
        raise StartError(f"no policy in {model}: expected a Hugging Face folder with its config.json, or a hub id")


def _check_ports(options: StackOptions) -> None:
    for port in (options.api_port, options.kafka_port, options.postgres_port):
        if answers(port):
            raise StartError(f"somebody else listens on port {port} of this machine: choose another one")


def _end_leftovers(state_path: Path) -> None:
    """Wait for the processes of a killed supervisor: two learners must not write to one directory."""
    state = state_file.read(state_path)
    if state is not None:
        state_file.end(state.processes, grace_seconds=_LEFTOVER_SECONDS)
        state_path.unlink()
