"""The law of out-of-order completion, by examples and by random histories."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tba_common.watermark import Watermark


def test_nothing_is_committable_before_the_first_record_is_done() -> None:
    watermark = Watermark()
    watermark.deliver(0, 5)
    watermark.deliver(0, 6)
    watermark.done(0, 6)
    assert watermark.committable() == {}


def test_the_watermark_jumps_over_all_that_was_done_out_of_order() -> None:
    watermark = Watermark()
    for offset in (5, 6, 7, 8):
        watermark.deliver(0, offset)
    watermark.done(0, 7)
    watermark.done(0, 6)
    watermark.done(0, 5)
    assert watermark.committable() == {0: 8}


def test_a_gap_in_the_offsets_is_no_unfinished_record() -> None:
    watermark = Watermark()
    watermark.deliver(0, 5)
    watermark.deliver(0, 9)
    watermark.done(0, 5)
    assert watermark.committable() == {0: 9}
    watermark.done(0, 9)
    assert watermark.committable() == {0: 10}


def test_partitions_do_not_wait_for_one_another() -> None:
    watermark = Watermark()
    watermark.deliver(0, 1)
    watermark.deliver(1, 1)
    watermark.done(1, 1)
    assert watermark.committable() == {1: 2}


def test_what_was_committed_is_not_offered_again() -> None:
    watermark = Watermark()
    watermark.deliver(0, 1)
    watermark.done(0, 1)
    watermark.committed(watermark.committable())
    assert watermark.committable() == {}


def test_a_record_done_after_its_partition_was_lost_changes_nothing() -> None:
    watermark = Watermark()
    watermark.deliver(3, 1)
    watermark.lose(3)
    watermark.done(3, 1)
    assert watermark.committable() == {}
    assert watermark.position(3) == 0


def test_a_commit_that_returns_after_its_partition_was_lost_changes_nothing() -> None:
    watermark = Watermark()
    watermark.deliver(3, 10)
    watermark.lose(3)
    watermark.committed({3: 11})
    watermark.deliver(3, 0)
    watermark.done(3, 0)
    assert watermark.committable() == {3: 1}


def test_going_back_without_losing_the_partition_is_refused() -> None:
    watermark = Watermark()
    watermark.deliver(0, 5)
    with pytest.raises(ValueError, match="partition 0: expected offset 6 or later, got 5"):
        watermark.deliver(0, 5)


#: Ascending offsets with gaps for each of a few partitions.
_logs = st.dictionaries(
    st.integers(0, 3), st.lists(st.integers(0, 200), min_size=1, max_size=20, unique=True).map(sorted), min_size=1
)


@given(_logs, st.randoms(use_true_random=False))
def test_a_commit_never_passes_an_unfinished_record(logs: dict[int, list[int]], chance: random.Random) -> None:
    watermark = Watermark()
    undelivered = {partition: list(offsets) for partition, offsets in logs.items()}
    unfinished: set[tuple[int, int]] = set()
    while any(undelivered.values()) or unfinished:
        deliverable = [partition for partition, offsets in undelivered.items() if offsets]
        if deliverable and (not unfinished or chance.random() < 0.5):
            partition = chance.choice(deliverable)
            offset = undelivered[partition].pop(0)
            watermark.deliver(partition, offset)
            unfinished.add((partition, offset))
        else:
            place = chance.choice(sorted(unfinished))
            unfinished.remove(place)
            watermark.done(*place)
            watermark.done(*place)  # once more, as after a redelivery of the ack
        for partition, committed in watermark.committable().items():
            assert all(offset >= committed for held, offset in unfinished if held == partition)
            assert all(offset >= committed for offset in undelivered[partition])
        if chance.random() < 0.3:
            watermark.committed(watermark.committable())


@given(_logs, st.randoms(use_true_random=False))
def test_once_everything_is_done_everything_is_committed(logs: dict[int, list[int]], chance: random.Random) -> None:
    watermark = Watermark()
    places = [(partition, offset) for partition, offsets in logs.items() for offset in offsets]
    for place in places:
        watermark.deliver(*place)
    chance.shuffle(places)
    committed: dict[int, int] = {}
    for place in places:
        watermark.done(*place)
        committed |= watermark.committable()
        watermark.committed(committed)
    assert committed == {partition: offsets[-1] + 1 for partition, offsets in logs.items()}


@given(_logs, st.randoms(use_true_random=False))
def test_a_commit_never_goes_back(logs: dict[int, list[int]], chance: random.Random) -> None:
    watermark = Watermark()
    places = [(partition, offset) for partition, offsets in logs.items() for offset in offsets]
    for place in places:
        watermark.deliver(*place)
    chance.shuffle(places)
    newest: dict[int, int] = {}
    for place in places:
        watermark.done(*place)
        offsets = watermark.committable()
        assert all(offset > newest.get(partition, -1) for partition, offset in offsets.items())
        watermark.committed(offsets)
        newest |= offsets
