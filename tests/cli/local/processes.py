"""Small processes for tests, and a way to wait for them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tba_cli.local.ports import LOOPBACK, free_ports, is_ready

#: Python code that ends by a signal only.
FOR_EVER: Final = "import signal; signal.pause()"


def python(code: str, *arguments: str) -> tuple[str, ...]:
    """A command that runs `code` and starts fast."""
    return (sys.executable, "-S", "-c", code, *arguments)


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return when the condition holds; fail after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@contextmanager
def wrapper(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A ready `python -m module` as the supervisor runs it, killed at the end if it still lives."""
    health = f"{LOOPBACK}:{free_ports(1)[0]}"
    env = os.environ | {"TBA_HEALTH_ADDRESS": health}
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], env=env)
    try:
        wait_until(lambda: is_ready(health))
        yield process
    finally:
        process.kill()
        process.wait()
