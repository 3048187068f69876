"""A wrapper's life: stay in the foreground until a signal asks to end, or the wrapped server ends by itself."""

from __future__ import annotations

import signal
import subprocess
from typing import Final

from tba_common.lifecycle import Lifecycle

_POLL_SECONDS: Final = 0.1


def stay(process: subprocess.Popen[bytes], life: Lifecycle) -> bool:
    """Block until `life` is asked to stop (returns True) or the process has ended (returns False)."""
    while process.poll() is None:
        life.beat()
        if life.stop.wait(_POLL_SECONDS):
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
