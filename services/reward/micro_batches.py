"""Batches for a model out of what many threads ask at once: gathered for a moment, sorted by length, bounded in tokens.

While the model is busy, what comes in gathers by itself; only an idle one waits, some milliseconds, for company.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Final, Generic, NamedTuple, TypeVar

from services.reward.model_settings import ModelSettings
from tba_common import metrics

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_GATHER_SECONDS: Final = 0.003


class _Asked(NamedTuple, Generic[_Item, _Result]):
    item: _Item
    answer: Future[tuple[Future[Sequence[_Result]], int]]  # the batch it went into, and its place there


class MicroBatches(Generic[_Item, _Result]):
    """Calls `run` with batches of items, on one thread of its own. Thread-safe; a context manager.

    `length` is an item's tokens; a batch takes at most the settings' `batch_tokens`, padding included, or one longer
    item alone.
    """

    def __init__(
        self,
        run: Callable[[Sequence[_Item]], Sequence[_Result]],
        scorer: str,
        settings: ModelSettings,
        *,
        length: Callable[[_Item], int],
        gather_seconds: float = _GATHER_SECONDS,
    ) -> None:
        self._run = run
        self._length = length
        self._batch_tokens = settings.batch_tokens
        self._gather_seconds = gather_seconds
        self._text = metrics.REWARD_MODEL_TOKENS.labels(scorer, "text")
        self._padding = metrics.REWARD_MODEL_TOKENS.labels(scorer, "padding")
        self._asked: queue.SimpleQueue[list[_Asked[_Item, _Result]] | None] = queue.SimpleQueue()
        self._model = ThreadPoolExecutor(1, thread_name_prefix=f"{scorer}-model")
        self._gatherer = threading.Thread(target=self._serve, name=f"{scorer}-batches", daemon=True)

    def __enter__(self) -> MicroBatches[_Item, _Result]:
        self._gatherer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._asked.put(None)
        self._gatherer.join()
        self._model.shutdown()

    def __call__(self, items: Sequence[_Item]) -> list[_Result]:
        """The result of each item, in order. What `run` raised over a batch is raised to everyone in it."""
        asked = [_Asked[_Item, _Result](item, Future()) for item in items]
        self._asked.put(asked)
        places = [one.answer.result() for one in asked]
        return [batch.result()[index] for batch, index in places]

    def _serve(self) -> None:
        while (first := self._asked.get()) is not None:
            asked = self._gathered(first)
            for indices in pack([self._length(one.item) for one in asked], self._batch_tokens):
                self._batch([asked[i] for i in indices])

    def _gathered(self, asked: list[_Asked[_Item, _Result]]) -> list[_Asked[_Item, _Result]]:
        """All that is asked by now, or soon, until it fills a batch."""
        until = time.monotonic() + self._gather_seconds
        tokens = sum(self._length(one.item) for one in asked)
        while tokens < self._batch_tokens:
            try:
                more = self._asked.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if more is None:
                self._asked.put(None)
                break
            asked = asked + more
            tokens += sum(self._length(one.item) for one in more)
        return asked

    def _batch(self, asked: Sequence[_Asked[_Item, _Result]]) -> None:
        batch = self._model.submit(self._run, [one.item for one in asked])
        for index, one in enumerate(asked):
            one.answer.set_result((batch, index))
        wait([batch])
        lengths = [self._length(one.item) for one in asked]
        self._text.inc(sum(lengths))
        self._padding.inc(max(lengths) * len(lengths) - sum(lengths))


def pack(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Divide items into batches of similar length, the longest first: rows x longest row is at most `batch_tokens`.

    Returns the indices in each batch; an item that is longer than a batch is alone in its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
