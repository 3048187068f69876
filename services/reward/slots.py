"""Work on threads, a bounded number at once and for a bounded time.

A thread cannot be killed. One that overruns is left behind: its item fails, its place is free, and what it returns
is nobody's. When as many are left behind as may work at once, only a new process gets rid of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Final, Generic, TypeVar

_Key = TypeVar("_Key")
_Result = TypeVar("_Result")


class Overrun(Exception):
    """An item took longer than its time limit."""


class TooManyOverran(Exception):
    """As many threads hang as may work at once: the process must end."""


class Slots(Generic[_Key, _Result]):
    """Not thread-safe: one thread starts and collects."""

    def __init__(self, name: str, count: int, limit_seconds: float) -> None:
        self._name: Final = name
        self._count: Final = count
        self._limit: Final = limit_seconds
        self._running: dict[Future[_Result], tuple[_Key, float, threading.Thread]] = {}
        self._left_behind: list[threading.Thread] = []

    def __len__(self) -> int:
        return len(self._running)

    @property
    def room(self) -> int:
        """How many more may start."""
        return self._count - len(self._running)

    def start(self, key: _Key, work: Callable[[], _Result]) -> None:
        """Work on an item, on a thread of its own.

        Raises:
            TooManyOverran: too many threads hang.
        """
        self._left_behind = [thread for thread in self._left_behind if thread.is_alive()]
        if len(self._left_behind) >= self._count:
            raise TooManyOverran(f"{len(self._left_behind)} threads work for more than {self._limit:g} s")
        future: Future[_Result] = Future()
        # A daemon, so that one that hangs does not keep the process from ending.
        thread = threading.Thread(target=_run, args=(future, work), name=self._name, daemon=True)
        self._running[future] = (key, time.monotonic(), thread)
        thread.start()

    def ended(self, timeout_seconds: float) -> list[tuple[_Key, Future[_Result]]]:
        """Wait for the first to end; return all that did, with what they returned or raised, `Overrun` among it."""
        finished, _ = wait(self._running, timeout_seconds, FIRST_COMPLETED)
        ended = [(self._running.pop(future)[0], future) for future in finished]
        latest_start = time.monotonic() - self._limit
        for future, (key, started_at, thread) in list(self._running.items()):
            if started_at < latest_start:
                del self._running[future]
                self._left_behind.append(thread)
                overrun: Future[_Result] = Future()
                overrun.set_exception(Overrun(f"exceeded {self._limit:g} s"))
                ended.append((key, overrun))
        return ended


def _run(future: Future[_Result], work: Callable[[], _Result]) -> None:
    try:
        result = work()
    except BaseException as failure:  # crosses to the thread that collects, and is judged there
        future.set_exception(failure)
    else:
        future.set_result(result)
