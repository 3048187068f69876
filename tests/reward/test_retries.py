"""A failed visit is made again soon, then late, then never."""

from __future__ import annotations

import pytest

from services.reward.retries import Visit, Waiting, late_visit, next_round, wait_here
from tba_common.codec import encode
from tba_common.kafka import Record
from tba_common.messages import Message, Retry
from tests.reward.rollouts import prompt, rollout

RECORD = Record("tba.rollouts.judge", 0, 0, None, b"", {})


def record_of(message: Message) -> Record:
    schema, body = encode(message)
    return Record("tba.retries.judge", 0, 0, None, body, {"schema": schema.encode()})


def test_three_more_visits_are_made_here_each_twice_as_late() -> None:
    attempt, waits = Visit(RECORD), []
    for _ in range(4):
        attempt = attempt.failed
        waits.append(wait_here(attempt, luck=0.5))
    assert waits == [0.5, 1.0, 2.0, None]


@pytest.mark.parametrize(("luck", "seconds"), [(0.0, 0.25), (0.5, 0.5), (1.0, 0.75)])
def test_luck_spreads_a_wait_by_half_of_it(luck: float, seconds: float) -> None:
    assert wait_here(Visit(RECORD).failed, luck) == seconds


def test_each_round_waits_twice_as_long_up_to_five_minutes_and_none_follows_the_last() -> None:
    waits = []
    for rounds in range(6):
        retry = next_round(Visit(RECORD, rounds, attempts=4), 1_000.0, 0.5, rounds=5, first_seconds=30.0)
        waits.append(retry and (retry.rounds, retry.not_before - 1_000.0))
    assert waits == [(1, 30.0), (2, 60.0), (3, 120.0), (4, 240.0), (5, 300.0), None]


def test_a_visit_after_a_round_knows_all_that_failed_and_may_fail_here_again() -> None:
    retry = Retry(rounds=2, attempts=8, not_before=60.0)
    visit, due = late_visit(record_of(rollout("19", retry=retry)), now=50.0)
    assert (visit.rounds, visit.attempts, visit.attempts_here, due) == (2, 8, 0, 60.0)


def test_a_clock_that_goes_wrong_elsewhere_does_not_keep_a_record_for_ever() -> None:
    late = record_of(rollout("19", retry=Retry(rounds=1, attempts=4, not_before=1e9)))
    assert late_visit(late, now=50.0)[1] == 350.0


@pytest.mark.parametrize("record", [RECORD, record_of(prompt()), record_of(rollout("19"))])
def test_a_record_that_says_nothing_of_a_retry_is_visited_at_once(record: Record) -> None:
    assert late_visit(record, now=50.0) == (Visit(record), 50.0)


def test_visits_wait_until_their_time_and_come_the_earliest_first() -> None:
    waiting = Waiting()
    for rounds, due in enumerate((3.0, 1.0, 2.0, 2.0)):
        waiting.put(Visit(RECORD, rounds), due)
    assert waiting.due(0.9, limit=9) == []
    assert [visit.rounds for visit in waiting.due(2.0, limit=2)] == [1, 2]
    assert [visit.rounds for visit in waiting.due(2.0, limit=9)] == [3]
    assert len(waiting) == 1
