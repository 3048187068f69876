"""Batches out of what many threads ask at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.reward.micro_batches import MicroBatches, pack
from services.reward.model_settings import ModelSettings


class Doubling:
    """Doubles numbers, and remembers its batches; waits at a gate."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.busy = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.busy.set()
        assert self.gate.wait(60)
        self.batches.append(list(items))
        if 13 in items:
            raise ZeroDivisionError("thirteen")
        return [2 * item for item in items]


def batches(run: Doubling, *, tokens: int = 100, seconds: float = 0) -> MicroBatches[int, int]:
    settings = ModelSettings(batch_tokens=tokens)
    return MicroBatches(run, "reward_model", settings, length=lambda item: item, gather_seconds=seconds)


def test_results_come_back_in_the_order_of_the_items() -> None:
    run = Doubling()
    with batches(run, tokens=10) as ask:
        assert ask([3, 1, 5, 2]) == [6, 2, 10, 4]
    assert run.batches == [[5, 3], [2, 1]]


def test_what_is_asked_while_the_model_is_busy_shares_the_next_batch() -> None:
    run = Doubling()
    run.gate.clear()
    with batches(run, seconds=0.1, tokens=20) as ask, ThreadPoolExecutor(3) as threads:
        first = threads.submit(ask, [20])  # fills a batch by itself
        assert run.busy.wait(60)
        others = [threads.submit(ask, [4]), threads.submit(ask, [5])]
        while ask._asked.qsize() < 2:
            threading.Event().wait(0.001)
        run.gate.set()
        assert [first.result(60), *(other.result(60) for other in others)] == [[40], [8], [10]]
    assert sorted(map(sorted, run.batches)) == [[4, 5], [20]]


def test_what_a_batch_raises_is_raised_to_everyone_in_it_and_to_nobody_else() -> None:
    with batches(Doubling()) as ask:
        with pytest.raises(ZeroDivisionError, match="thirteen"):
            ask([13, 2])
        assert ask([2]) == [4]


def test_no_items_are_no_batch() -> None:
    run = Doubling()
    with batches(run) as ask:
        assert ask([]) == []
    assert run.batches == []


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_everything_once_and_stay_within_their_tokens(lengths: list[int], batch_tokens: int) -> None:
    packed = pack(lengths, batch_tokens)
    assert sorted(index for batch in packed for index in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[i] for i in batch) <= batch_tokens for batch in packed if len(batch) > 1)


def test_texts_of_similar_length_are_packed_together() -> None:
    assert pack([2, 9, 3, 8, 2], 18) == [[1, 3], [2, 0, 4]]
