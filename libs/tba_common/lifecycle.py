"""How a process lives: logs, signals, health. The same for every service, so that they die the same way too.

SIGTERM and SIGINT set `stop`; the loop sees it between two turns, gives back what it has, and exits 0. A process
that cannot, because what it waits for is gone, ends itself when its grace is over: nothing uncommitted is lost.
Liveness is the age of the loop's heartbeat, never "the port answers".
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType, TracebackType
from typing import Any, Final, Literal

from prometheus_client import CONTENT_TYPE_LATEST

from tba_common import metrics
from tba_common.listening import listen
from tba_common.settings import ServiceSettings

MAX_HEARTBEAT_AGE_SECONDS: Final = 120.0
_STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "vllm_process_name",  # vLLM puts it on every record
}

log = logging.getLogger(__name__)


class Lifecycle:
    """Context of a process's main loop: `while not life.stop.is_set(): step(); life.beat()`."""

    def __init__(self, service: str, settings: ServiceSettings) -> None:
        self.stop = threading.Event()
        self.service = service
        self._address = settings.health_address
        self._beat_at = time.monotonic()
        self._not_ready = "starting"
        self._server: ThreadingHTTPServer | None = None
        self._grace_seconds = settings.grace_seconds
        self._must_end_at = float("inf")
        self._watchdog = threading.Timer(self._grace_seconds, self._end)
        self._watchdog.daemon = True
        configure_logging(settings.log_format)

    def beat(self) -> None:
        """Say that the loop made a turn."""
        self._beat_at = time.monotonic()

    def ready(self, is_ready: bool, reason: str = "") -> None:
        """Say whether work can be given to this process; `reason` is shown while it cannot."""
        self._not_ready = "" if is_ready else reason or "not ready"

    def health(self) -> tuple[bool, str]:
        """Return whether the loop is alive, and a sentence about it."""
        age = time.monotonic() - self._beat_at
        if age > MAX_HEARTBEAT_AGE_SECONDS:
            return False, f"last turn {age:.0f} s ago, expected within {MAX_HEARTBEAT_AGE_SECONDS:.0f} s"
        return True, f"last turn {age:.1f} s ago"

    @property
    def seconds_left(self) -> float:
        """Until the process ends itself; infinite while it has not been told to stop."""
        return self._must_end_at - time.monotonic()

    def readiness(self) -> tuple[bool, str]:
        """Return whether the process is ready, and why not."""
        return not self._not_ready, self._not_ready or "ready"

    @property
    def address(self) -> str | None:
        """host:port of the health server, while it runs."""
        if self._server is None:
            return None
        host, port = self._server.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def __enter__(self) -> Lifecycle:
        signals, self._signalled = os.pipe()
        threading.Thread(target=self._wait_for_signals, args=(signals,), name="signals", daemon=True).start()
        self._handlers = {n: signal.signal(n, self._on_signal) for n in (signal.SIGTERM, signal.SIGINT)}
        host, _, port = self._address.rpartition(":")
        self._server = _HealthServer(listen(host.strip("[]"), int(port)), _handler(self))
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="health", daemon=True).start()
        log.info("started", extra={"service": self.service, "health": self.address})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self._watchdog.cancel()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._signalled)
        if error is None:
            log.info("stopped", extra={"service": self.service})
        return False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # The main thread may stand inside a lock of logging or of `stop`, which must not be entered twice.
        os.write(self._signalled, bytes([number]))

    def _wait_for_signals(self, signals: int) -> None:
        while number := os.read(signals, 1):
            if not self.stop.is_set():
                self._must_end_at = time.monotonic() + self._grace_seconds
                self.stop.set()
                self._watchdog.start()
            log.info("stopping", extra={"service": self.service, "signal": signal.Signals(number[0]).name})
        os.close(signals)

    def _end(self) -> None:
        log.error("not stopped in time: ending", extra={"service": self.service, "grace_seconds": self._grace_seconds})
        os._exit(1)


def end_on_sigterm() -> None:
    """For what only waits, or does one thing: end at SIGTERM.

    As the first process of its container it would ignore the signal, and its pod would go only when it is killed.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def configure_logging(log_format: Literal["text", "json"]) -> None:
    """Send every log event to stderr, one line each, with its fields."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # During an outage the library says so ten times a second; our doors say it once, and raise when it lasts.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    for chatty in ("alembic", "httpx"):  # each request would be a line
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        fields = " ".join(f"{name}={_one_line(str(value))}" for name, value in _fields(record).items())
        return f"{super().formatMessage(record)} {fields}".rstrip()


def _one_line(text: str) -> str:
    """A value may quote what a model wrote: its line breaks and control characters must not pass for log lines."""
    return text if text.isprintable() else repr(text)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


class _HealthServer(ThreadingHTTPServer):
    """Serves on a socket that listens already."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(listener.getsockname(), handler, bind_and_activate=False)
        self.socket.close()  # its own, which is IPv4
        self.socket = listener


def _handler(life: Lifecycle) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server's own name
            if self.path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, metrics.exposition(life.service))
            elif self.path in ("/healthz", "/readyz"):
                good, sentence = life.health() if self.path == "/healthz" else life.readiness()
                self._answer(200 if good else 503, "text/plain; charset=utf-8", f"{sentence}\n".encode())
            else:
                self._answer(404, "text/plain; charset=utf-8", b"expected /healthz, /readyz or /metrics\n")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            try:
                self.end_headers()
                self.wfile.write(body)
            except ConnectionError:  # a prober that did not wait asks again; a traceback each time would help nobody
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # a probe is not an event
            return

    return Handler
