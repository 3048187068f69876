"""Work on threads ends, or is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from services.reward.slots import Overrun, Slots, TooManyOverran


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opens at the end, so that no thread outlives its test by much."""
    event = threading.Event()
    yield event
    event.set()


def collect(slots: Slots[str, bool], number: int) -> dict[str, BaseException | None]:
    ended: dict[str, BaseException | None] = {}
    deadline = time.monotonic() + 60
    while len(ended) < number:
        assert time.monotonic() < deadline
        ended |= {key: future.exception() for key, future in slots.ended(0.01)}
    return ended


def test_what_ends_says_what_it_returned_or_raised() -> None:
    slots = Slots[str, float]("test", 2, limit_seconds=60)
    slots.start("good", lambda: 0.5)
    assert [(key, future.result()) for key, future in slots.ended(60)] == [("good", 0.5)]
    slots.start("bad", lambda: 1 / 0)
    [(key, future)] = slots.ended(60)
    assert (key, type(future.exception())) == ("bad", ZeroDivisionError)


def test_only_so_many_work_at_once(gate: threading.Event) -> None:
    slots = Slots[str, bool]("test", 2, limit_seconds=60)
    slots.start("a", gate.wait)
    assert slots.room == 1
    slots.start("b", gate.wait)
    assert (slots.room, len(slots)) == (0, 2)


def test_one_that_overruns_is_left_behind_and_its_place_is_free(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = Slots[str, bool]("test", 2, limit_seconds=0.1)
    slots.start("hangs", gate.wait)
    [(key, failure)] = collect(slots, 1).items()
    assert (key, type(failure), str(failure)) == ("hangs", Overrun, "exceeded 0.1 s")
    assert slots.room == 2
    monkeypatch.setattr(slots, "_limit", 60.0)
    slots.start("works", lambda: True)
    assert collect(slots, 1) == {"works": None}


def test_as_many_left_behind_as_may_work_at_once_end_the_process(gate: threading.Event) -> None:
    slots = Slots[str, bool]("test", 2, limit_seconds=0.1)
    slots.start("a", gate.wait)
    slots.start("b", gate.wait)
    collect(slots, 2)
    with pytest.raises(TooManyOverran, match=r"2 threads work for more than 0\.1 s"):
        slots.start("c", lambda: True)


def test_those_left_behind_count_only_while_they_hang(gate: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots[str, bool]("test", 1, limit_seconds=0.1)
    slots.start("slow", gate.wait)
    collect(slots, 1)
    gate.set()
    [left] = slots._left_behind
    left.join(60)
    monkeypatch.setattr(slots, "_limit", 60.0)
    slots.start("next", lambda: True)
    assert collect(slots, 1) == {"next": None}
