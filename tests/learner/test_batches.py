"""The order of batches under anything a log can bring: copies, gaps, batches ahead of their turn, a crash."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.learner.batches import BatchAssembler
from tba_common.codec import BadMessage
from tba_common.messages import Group
from tests.learner.groups import draw, group

BATCHES: Final = 4
SIZE: Final = 3
DRAW: Final = draw(1, [40, 1])


def part(batch_id: int, index: int, *, size: int = SIZE, prompt_id: int = 1) -> Group:
    return group(DRAW, batch_id=batch_id, index=index, size=size, prompt_id=prompt_id)


#: A log that holds every group at least once, with any number of copies, in any order.
LOGS: Final = st.builds(
    lambda copies, random: (random.shuffle(copies), copies)[1],
    st.lists(st.tuples(st.integers(1, BATCHES), st.integers(0, SIZE - 1)), max_size=12).map(
        lambda extra: [(b, i) for b in range(1, BATCHES + 1) for i in range(SIZE)] + extra
    ),
    st.randoms(use_true_random=False),
)


def read(assembler: BatchAssembler, log: list[tuple[int, int]], start: int = 0) -> list[tuple[int, list[int]]]:
    """Batch ids and group indices that are given out, reading to the end; a copy's offset is its prompt_id."""
    given_out = []
    for offset in range(start, len(log)):
        assembler.add(part(*log[offset], prompt_id=offset), offset)
        while (batch := assembler.take()) is not None:
            given_out.append((batch.batch_id, [g.prompt_id for g in batch.groups]))
            assert [g.index for g in batch.groups] == list(range(SIZE))
    return given_out


@given(LOGS)
def test_any_interleaving_gives_every_batch_in_order_exactly_once(log: list[tuple[int, int]]) -> None:
    assert [batch_id for batch_id, _ in read(BatchAssembler(0), log)] == [1, 2, 3, 4]


@given(LOGS, st.integers(0, 24))
def test_a_restart_from_the_resume_offset_gives_the_same_later_batches(log: list[tuple[int, int]], crash: int) -> None:
    crash = min(crash, len(log))
    assembler = BatchAssembler(0)
    before = read(assembler, log[:crash])
    offset, last = assembler.resume_offset(crash), assembler.last_batch_id
    after = read(BatchAssembler(last), log, start=offset)
    assert before + after == read(BatchAssembler(0), log)


@given(LOGS, st.integers(0, 24))
def test_the_resume_offset_never_skips_a_group_that_is_held(log: list[tuple[int, int]], crash: int) -> None:
    crash = min(crash, len(log))
    assembler = BatchAssembler(0)
    read(assembler, log[:crash])
    held = [offset for offset in range(crash) if log[offset][0] > assembler.last_batch_id]
    assert assembler.resume_offset(crash) == min([crash, *held])


def test_nothing_is_given_out_across_a_gap() -> None:
    assembler = BatchAssembler(0)
    for index in range(SIZE):
        assembler.add(part(2, index), index)
    assert assembler.take() is None
    assert assembler.resume_offset(SIZE) == 0
    for index in range(SIZE):
        assembler.add(part(1, index), SIZE + index)
    assert [batch.batch_id for batch in (assembler.take(), assembler.take()) if batch] == [1, 2]
    assert assembler.take() is None
    assert assembler.resume_offset(2 * SIZE) == 2 * SIZE


def test_batches_up_to_the_checkpoint_are_not_given_out_again() -> None:
    assembler = BatchAssembler(2)
    for batch_id in (1, 2, 3):
        assembler.add(part(batch_id, 0, size=1), batch_id)
    batches = [assembler.take(), assembler.take()]
    assert [batch.batch_id if batch else None for batch in batches] == [3, None]
    assert assembler.last_batch_id == 3


def test_the_copy_that_came_first_counts() -> None:
    assembler = BatchAssembler(0)
    for offset in (5, 9):
        assembler.add(part(2, 0, size=1, prompt_id=offset), offset)
    assert assembler.resume_offset(10) == 5
    assembler.add(part(1, 0, size=1), 10)
    assembler.take()
    batch = assembler.take()
    assert batch is not None
    assert batch.groups[0].prompt_id == 5


def test_after_the_log_was_lost_the_copy_of_the_new_one_counts() -> None:
    assembler = BatchAssembler(0)
    assembler.add(part(1, 0, size=2), 500)
    assembler.add(part(1, 0, size=2), 3)
    assert assembler.resume_offset(7) == 3


def test_a_batch_that_was_drawn_anew_with_another_size_replaces_the_old_one() -> None:
    assembler = BatchAssembler(0)
    assembler.add(part(1, 0, size=3, prompt_id=7), 0)
    assembler.add(part(1, 1, size=2, prompt_id=8), 1)
    assembler.add(part(1, 0, size=2, prompt_id=9), 2)
    batch = assembler.take()
    assert batch is not None
    assert [g.prompt_id for g in batch.groups] == [9, 8]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (part(1, 3), "batch 1, group 3: expected an index from 0 to 2"),
        (part(1, -1), "batch 1, group -1: expected an index from 0 to 2"),
        (part(1, 0, size=0), "expected an index from 0 to -1"),
        (group(), "expected draws of one token or more, got \\[\\]"),
        (group(DRAW, draw(2, [])), "expected draws of one token or more, got \\[2, 0\\]"),
        (group(DRAW, prompt_token_ids=[]), "expected a prompt, got no token"),
    ],
)
def test_a_group_that_cannot_be_part_of_its_batch_is_refused_with_the_reason(bad: Group, reason: str) -> None:
    assembler = BatchAssembler(0)
    with pytest.raises(BadMessage, match=reason):
        assembler.add(bad, 0)
    assert assembler.take() is None
    assert assembler.resume_offset(1) == 1
