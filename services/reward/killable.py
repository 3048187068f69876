"""Functions run in worker processes that can be killed: the only way to stop one that hangs. The door to pebble.

A group of items is one task, for speed. If it takes too long or its process dies, each item is tried alone, so
that the culprit has a name; a group that is only slow as a whole still gets its results.
"""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Final, TypeVar

from pebble import ProcessExpired, ProcessPool

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_BACKSTOP_SECONDS: Final = 0.5
_STALL_SECONDS: Final = 60.0  # beyond the time limit: for starting processes on a busy machine


class EvaluationFailed(Exception):
    """One item is too slow, or takes its process down. `index` says which, `str()` says how."""

    def __init__(self, index: int, how: str) -> None:
        super().__init__(how)
        self.index = index


class PoolStalled(Exception):
    """Nothing comes back from the worker processes at all: let this process crash and be restarted."""


class Killable:
    """A pool of worker processes with a time limit on what they run. Thread-safe; a context manager."""

    def __init__(
        self, *, processes: int, time_limit_seconds: float, recycle_after: int, preload: Sequence[str]
    ) -> None:
        """`preload` names modules that a worker process has imported when it starts."""
        # Not fork: a copy of a process whose threads hold locks may wait on them for ever. The fork server has
        # no threads, and starts a worker with its modules in milliseconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preload))
        self._limit = time_limit_seconds
        self._pool = ProcessPool(max_workers=processes, max_tasks=recycle_after, context=context)
        self._ends = itertools.count(1)
        self._ended = 0

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
            PoolStalled: the pool does not work.
        """
        try:
            return self._results(self._schedule(function, items))
        except (TimeoutError, ProcessExpired):
            return self._one_by_one(function, items)

    def _one_by_one(self, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        futures = [self._schedule(function, [item]) for item in items]
        try:
            return [self._sole_result(index, future) for index, future in enumerate(futures)]
        finally:
            for future in futures:
                future.cancel()

    def _sole_result(self, index: int, future: Future[list[_Result]]) -> _Result:
        try:
            return self._results(future)[0]
        except TimeoutError as error:
            raise EvaluationFailed(index, f"exceeded {self._limit:g} s") from error
        except ProcessExpired as death:
            raise EvaluationFailed(index, f"died with exit code {death.exitcode}") from death

    def _schedule(self, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Future[list[_Result]]:
        future: Future[list[_Result]] = self._pool.schedule(
            _apply, args=(function, list(items), self._limit), timeout=self._limit
        )
        future.add_done_callback(self._note_end)
        return future

    def _note_end(self, _future: Future[list[_Result]]) -> None:
        self._ended = next(self._ends)

    def _results(self, future: Future[list[_Result]]) -> list[_Result]:
        # A task may wait its turn for long; but while one waits, some task ends within every time limit.
        ended = None
        while wait([future], timeout=self._limit + _STALL_SECONDS).not_done:
            if ended == self._ended:
                raise PoolStalled(f"no evaluation ended within {self._limit + _STALL_SECONDS:g} s")
            ended = self._ended
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
