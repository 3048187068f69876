"""An upgrade on one machine: each process is replaced as its workload does it on a cluster, under load.

A Deployment starts the new process, waits until it is ready, and ends the old one. A StatefulSet, which the learner
is, and whoever has a fixed share of the partitions, never has two: the old one ends first.
"""

from __future__ import annotations

import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Final

from tba_cli.client import Client
from tba_cli.errors import TbaError
from tba_cli.local import services
from tba_cli.local.ports import LOOPBACK, free_ports
from tba_cli.local.stack import Stack, StackOptions
from tba_cli.local.supervisor import Supervisor
from tba_common.tasks import PromptSpec

SURGES: Final = ("tba-api", "tba-buffer")  # what the chart runs as a Deployment beside a broker such as this one
_PATIENCE_SECONDS: Final = 180.0
_PAUSE_SECONDS: Final = 0.2


class Front:
    """One address before one of several servers, as a Service is: new connections go to `port_behind`."""

    def __init__(self, port: int) -> None:
        self.port_behind = port
        self._open: Counter[int] = Counter()  # connections by the port behind them
        self._lock = threading.Lock()
        front = self

        class Handler(BaseRequestHandler):
            def handle(self) -> None:
                with (
                    suppress(ConnectionError),
                    front._connection() as port,
                    socket.create_connection((LOOPBACK, port)) as server,
                ):
                    up = threading.Thread(target=_pump, args=(self.request, server))
                    up.start()
                    _pump(server, self.request)
                    up.join()

        self._server = ThreadingTCPServer((LOOPBACK, 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://{LOOPBACK}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def is_left(self, port: int) -> bool:
        """Whether no connection goes to a port."""
        with self._lock:
            return self._open[port] == 0

    @contextmanager
    def _connection(self) -> Iterator[int]:
        with self._lock:
            port = self.port_behind
            self._open[port] += 1
        try:
            yield port
        finally:
            with self._lock:
                self._open[port] -= 1

    def __enter__(self) -> Front:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@dataclass
class Load:
    """Somebody who looks at the run and posts a prompt, again and again, and never asks twice."""

    url: str
    task: str
    posted: int = 0
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Go on until the block ends."""
        ends = threading.Event()
        thread = threading.Thread(target=self._run, args=(ends,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join()

    def _run(self, ends: threading.Event) -> None:
        while not ends.wait(_PAUSE_SECONDS):
            a, b = divmod(self.posted, 10)
            try:
                with Client(self.url, attempts=1) as client:  # of its own: a kept connection may end with its server
                    client.status()
                    client.add_prompts(self.task, [PromptSpec(text=f"{a}-{b}=", key=f"posted {self.posted}")])
            except TbaError as error:
                self.failures.append(str(error))
            else:
                self.posted += 1


class Rollout:
    """The processes of `stack` give way to those of `options`, which are the stack's own unless told otherwise."""

    def __init__(self, stack: Stack, front: Front, held: ExitStack, options: StackOptions | None = None) -> None:
        self._stack, self._front, self._held = stack, front, held
        self._api_port, *ports = free_ports(1 + stack.options.processes)
        of_new = replace(options or stack.options, api_port=self._api_port)
        self._specs = {spec.name: spec for spec in services.specs(of_new, iter(ports))}
        self.new: dict[str, Supervisor] = {}

    def start(self, name: str) -> None:
        """Start the new process of a name; return when it is ready, or has done its work."""
        spec = replace(self._specs[name], with_previous=False)
        self.new[name] = Supervisor([spec], self._stack.directory / "new" / name)
        self._held.enter_context(self.new[name])
        if name == "tba-api":
            old, self._front.port_behind = self._front.port_behind, self._api_port
            # A pod sleeps before it is told to end, for those who still speak with it.
            self._stack.wait_for(lambda: self._front.is_left(old), seconds=_PATIENCE_SECONDS, what="farewell")

    def end_old(self, name: str) -> None:
        """Ask the old process to end and wait until it has; one that overstays its grace is killed."""
        self._stack.supervisor.park(name)
        self._stack.wait_for(
            lambda: name not in self._stack.pids(), seconds=_PATIENCE_SECONDS, what=f"end of the old {name}"
        )

    def replace(self, name: str) -> None:
        """Replace a process as its workload does."""
        if name in SURGES:
            self.start(name)
            self.end_old(name)
        else:
            self.end_old(name)
            self.start(name)

    def logged(self, name: str, event: str, figure: str) -> list[int]:
        """What the new process of a name said in the lines of an event, in order."""
        lines = [line for line in self.new[name].log_of(name).read_text().splitlines() if event in line]
        return [int(found[1]) for line in lines if (found := re.search(rf"\b{figure}=(\d+)", line))]
