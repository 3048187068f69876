"""Functions run in worker processes that can be killed: the only way to stop one that hangs. The door to pebble.

A group of items is one task, for speed. If it takes too long or its process dies, each item is tried alone, so
that the culprit has a name; a group that is only slow as a whole still gets its results.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Final, TypeVar

from pebble import ProcessExpired, ProcessPool

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_BACKSTOP_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 1.0
_BROKEN: Final = "worker processes do not start, or one died without work"


class EvaluationFailed(Exception):
    """One item is too slow, or takes its process down. `index` says which, `str()` says how."""

    def __init__(self, index: int, how: str) -> None:
        super().__init__(how)
        self.index = index


class Killable:
    """A pool of worker processes with a time limit on what they run. Thread-safe; a context manager."""

    def __init__(
        self,
        *,
        processes: int,
        time_limit_seconds: float,
        recycle_after: int,
        warm_up: Callable[[], object],
        preload: Sequence[str] = (),
    ) -> None:
        """Each worker process runs `warm_up` before its time counts; `preload` names modules it is born with."""
        # Not fork: a copy of a process whose threads hold locks may wait on them for ever. The fork server has
        # no threads, and starts a worker with its modules in milliseconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preload))
        self._limit = time_limit_seconds
        self._pool = ProcessPool(processes, max_tasks=recycle_after, initializer=warm_up, context=context)

    def __enter__(self) -> Killable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop: Callable[[], None] = self._pool.stop  # pebble leaves its type open
        stop()
        self._pool.join()

    def map(self, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        """Apply an importable function to each item, in order. What it raises is raised here.

        Raises:
            EvaluationFailed: an item alone exceeds the time limit, or its process dies.
            BrokenProcessPool: worker processes do not start, or die without work. No item's fault, and no way
                to go on: let this process crash and be restarted.
        """
        try:
            return self._run(function, items)
        except (TimeoutError, ProcessExpired):
            return [self._run_alone(function, item, index) for index, item in enumerate(items)]

    def _run_alone(self, function: Callable[[_Item], _Result], item: _Item, index: int) -> _Result:
        try:
            return self._run(function, [item])[0]
        except TimeoutError as error:
            raise EvaluationFailed(index, f"exceeded {self._limit:g} s") from error
        except ProcessExpired as death:
            raise EvaluationFailed(index, f"died with exit code {death.exitcode}") from death

    def _run(self, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        if not self._pool.active:
            raise BrokenProcessPool(_BROKEN)
        arguments = (function, list(items), self._limit)
        future: Future[list[_Result]] = self._pool.schedule(_apply, args=arguments, timeout=self._limit)
        # Waiting its turn, a task may take longer than any limit; in a broken pool it would wait for ever.
        while wait([future], timeout=_LOOK_SECONDS).not_done:
            if not self._pool.active:
                raise BrokenProcessPool(_BROKEN)
        return future.result()


def _apply(function: Callable[[_Item], _Result], items: Sequence[_Item], limit_seconds: float) -> list[_Result]:
    # The pool kills at the limit, but with SIGTERM, which waits for the interpreter, and only while the service
    # lives. The kernel's timer does not: whatever happens, no evaluation burns a core for ever.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limit_seconds + _BACKSTOP_SECONDS)
    try:
        return [function(item) for item in items]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
