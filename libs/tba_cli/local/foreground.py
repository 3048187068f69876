"""A wrapper's life: stay in the foreground until a signal asks to end, or the wrapped server ends by itself."""

from __future__ import annotations

import signal
import subprocess
import threading
from typing import Final

_POLL_SECONDS: Final = 0.1


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def stay(process: subprocess.Popen[bytes], stop: threading.Event) -> bool:
    """Block until `stop` is set (returns True) or the process has ended (returns False)."""
    while process.poll() is None:
        if stop.wait(_POLL_SECONDS):
            return True
    return False


def end(process: subprocess.Popen[bytes], number: signal.Signals, *, grace_seconds: float) -> None:
    """Signal the process and reap it; SIGKILL after the grace period."""
    process.send_signal(number)
    try:
        process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
