"""Ctrl-C and SIGTERM in commands that hold a platform: either ends what goes on, and is remembered."""

from __future__ import annotations

import signal
import threading


def told_to_end() -> threading.Event:
    """Return what Ctrl-C and SIGTERM set from now on, beside raising KeyboardInterrupt.

    The exception alone would not do: one that is raised inside a destructor or a callback goes nowhere.
    """
    told = threading.Event()

    def end(_number: int, _frame: object) -> None:
        told.set()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    return told
