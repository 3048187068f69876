"""The window between polling and working: bounds, drains, losses."""

from __future__ import annotations

import threading

import pytest

from tba_common.in_hand import InHand
from tba_common.record import Record

RUN = "run-a"


def record(offset: int, *, partition: int = 0, run: str = RUN) -> Record:
    return Record("topic", partition, offset, None, b"", {"run": run.encode()})


def records(*offsets: int) -> list[Record]:
    return [record(offset) for offset in offsets]


def filled(window: int, *offsets: int) -> InHand:
    hand = InHand(window)
    hand.accept(records(*offsets), RUN)
    return hand


def offsets_of(taken: list[Record]) -> list[int]:
    return [item.offset for item in taken]


def test_records_are_taken_in_order_and_at_most_as_many_as_asked_for() -> None:
    hand = filled(10, 0, 1, 2)
    assert offsets_of(hand.take(2, 0)) == [0, 1]
    assert offsets_of(hand.take(2, 0)) == [2]


def test_no_more_than_the_window_is_in_work() -> None:
    hand = filled(2, 0, 1, 2)
    first, _ = hand.take(10, 0)
    assert hand.take(10, 0) == []
    hand.done(first)
    assert offsets_of(hand.take(10, 0)) == [2]


def test_polling_pauses_at_the_window_and_goes_on_at_half_of_it() -> None:
    hand = filled(4, 0, 1, 2)
    assert not hand.is_full()
    hand.accept(records(3), RUN)
    assert hand.is_full()
    one, two, *_ = hand.take(4, 0)
    hand.done(one)
    assert hand.is_full()
    hand.done(two)
    assert not hand.is_full()


def test_records_of_another_run_are_passed_over_but_committed() -> None:
    hand = InHand(4)
    hand.accept([record(0, run="run-b"), record(1)], RUN)
    assert offsets_of(hand.take(4, 0)) == [1]
    assert hand.committable() == {0: 1}


def test_a_record_without_a_run_header_is_not_overlooked() -> None:
    hand = InHand(4)
    hand.accept([Record("topic", 0, 7, None, b"", {})], RUN)
    assert offsets_of(hand.take(1, 0)) == [7]


def test_a_drain_gives_back_what_was_not_taken_and_still_lets_the_rest_finish() -> None:
    hand = filled(4, 0, 1)
    (first,) = hand.take(1, 0)
    hand.drain()
    hand.accept(records(2), RUN)
    assert hand.take(4, 0) == []
    assert hand.is_full()
    hand.done(first)
    assert hand.committable() == {0: 1}


def test_a_drain_wakes_whoever_waits() -> None:
    hand = InHand(1)
    waiter = threading.Timer(0.01, hand.drain)
    waiter.start()
    assert hand.take(1, 30.0) == []
    waiter.join()


def test_a_failure_of_the_poller_reaches_whoever_takes() -> None:
    hand = filled(1, 0)
    hand.fail(RuntimeError("the poller died"))
    with pytest.raises(RuntimeError, match="the poller died"):
        hand.take(1, 30.0)


def test_nothing_of_a_partition_that_is_not_kept_is_handed_out_or_committed() -> None:
    hand = InHand(4)
    hand.accept([record(0), record(0, partition=1), record(1)], RUN)
    (taken,) = hand.take(1, 0)
    hand.keep({1})
    hand.done(taken)
    assert [item.partition for item in hand.take(4, 0)] == [1]
    assert hand.committable() == {}


def test_a_log_that_starts_anew_is_read_although_its_offsets_were_seen_before() -> None:
    hand = filled(4, 5, 6)
    hand.take(4, 0)
    hand.accept(records(0), RUN)
    (again,) = hand.take(4, 0)
    hand.done(again)
    assert hand.committable() == {0: 1}


def test_a_late_ack_for_a_lost_log_does_not_finish_the_record_that_now_has_its_offset() -> None:
    hand = filled(4, 0)
    (old,) = hand.take(1, 0)
    hand.keep(set())
    hand.accept(records(0), RUN)
    hand.take(1, 0)
    hand.done(old)
    assert hand.committable() == {}


def test_time_without_progress_counts_only_while_records_are_in_work() -> None:
    hand = filled(4, 0)
    assert hand.seconds_without_progress(1e9) == 0
    (taken,) = hand.take(1, 0)
    assert hand.seconds_without_progress(1e9) > 0
    hand.done(taken)
    assert hand.seconds_without_progress(1e9) == 0


def test_a_window_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="window: expected at least 1, got 0"):
        InHand(0)
