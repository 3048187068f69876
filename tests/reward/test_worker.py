"""Nothing is done before it is delivered; what cannot be scored is told, not zeroed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.reward.scorer import PassingFault, ScorerUnfit, ScoringFailed
from services.reward.settings import RewardSettings
from services.reward.worker import Worker
from tba_common.codec import BadMessage
from tba_common.delivery import TooManyBad
from tba_common.kafka import DeliveryError
from tba_common.messages import Resumed, Retry, Rollout
from tests.reward.fakes import FakeBroker, FakeScorer
from tests.reward.rollouts import prompt, rollout, term


@pytest.fixture
def broker(tmp_path: Path) -> FakeBroker:
    return FakeBroker(tmp_path)


@dataclass
class Clock:
    """Unix time that goes only when it is told to."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


def worker_of(
    broker: FakeBroker, scorer: FakeScorer | None = None, *, clock: Clock | None = None, **settings: Any
) -> Worker:
    return Worker(
        scorer=scorer or FakeScorer(),
        consumer=broker.consumer(),
        retry_consumer=broker.retry_consumer(),
        producer=broker.producer(),
        dead_letters=broker.dead_letters(),
        journal=broker.journal(),
        settings=RewardSettings.model_validate({"parallel_rollouts": 2, "retry_seconds": 20.0, **settings}),
        clock=clock or Clock(),
        luck=lambda: 0.5,
    )


def step_until(worker: Worker, condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Turn the loop until the condition holds; fail after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        worker.step()


def turn_until_idle(worker: Worker) -> None:
    """Turn the loop until nothing is in the scorer."""
    worker.step()
    step_until(worker, lambda: not worker._slots)


def test_the_last_scorer_sends_trajectories_with_rewards(broker: FakeBroker) -> None:
    broker.post(rollout("19", "190"))
    worker = worker_of(broker)
    step_until(worker, lambda: bool(broker.sent))
    [(topic, _, key)] = broker.sent
    assert (topic, key) == ("tba.trajectories", "3")
    assert broker.trajectories[0].rewards.tolist() == [2, 3]
    assert broker.trajectories[0].rollout.scores[0].seconds >= 0


def test_a_scorer_in_between_forwards_along_the_slip(broker: FakeBroker) -> None:
    broker.post(rollout("19", remaining=("verifier", "judge")))
    worker = worker_of(broker)
    step_until(worker, lambda: bool(broker.sent))
    [(topic, message, key)] = broker.sent
    assert (topic, key) == ("tba.rollouts.judge", "3")
    assert isinstance(message, Rollout)
    assert message.remaining == ("judge",)
    assert message.scores[0].values.tolist() == [2]


def test_a_rollout_is_done_only_after_delivery(broker: FakeBroker) -> None:
    broker.post(rollout("19"))
    worker = worker_of(broker)
    step_until(worker, lambda: bool(broker.sent))
    assert broker.done == []
    broker.deliver()
    assert broker.done == [0]


def test_an_idle_worker_notices_that_a_send_was_lost(broker: FakeBroker) -> None:
    broker.post(rollout("19"))
    worker = worker_of(broker)
    step_until(worker, lambda: bool(broker.sent))
    broker.works = False
    with pytest.raises(DeliveryError):
        worker.step()
    assert broker.done == []


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"no message at all", "rollout/3 does not decode"),
        (Resumed(run_id="run", batch_id=0, step=0), "expected a rollout, got a resumed"),
        (rollout("19", remaining=("judge",)), "expected verifier to be next, got judge"),
        (rollout(), "expected at least one completion"),
    ],
)
def test_a_bad_message_goes_to_the_dead_letters_and_stops_nobody(
    broker: FakeBroker, message: Rollout | bytes, reason: str
) -> None:
    broker.post(message)
    broker.post(rollout("19"))
    worker = worker_of(broker)
    step_until(worker, lambda: len(broker.sent) == 2)
    broker.deliver()
    assert reason in broker.dead[0].reason
    assert len(broker.trajectories) == 1
    assert sorted(broker.done) == [0, 1]


@pytest.mark.parametrize(
    "failure",
    [
        ScoringFailed("verifier exceeded 5 s on completion 3 of 16"),
        BadMessage("match exact: expected a prompt with a reference, got none"),
    ],
)
def test_what_cannot_be_scored_is_dead_lettered_with_its_reason_and_its_issue(
    broker: FakeBroker, failure: BaseException
) -> None:
    broker.post(rollout("19"))
    worker = worker_of(broker, FakeScorer(failures=[failure]))
    step_until(worker, lambda: bool(broker.done))
    [letter] = broker.dead
    assert (letter.reason, letter.issue_id, letter.service) == (str(failure), 7, "tba-reward-verifier")
    assert broker.trajectories == []
    assert broker.done == [0]


def test_a_score_that_is_not_a_number_is_dead_lettered(broker: FakeBroker) -> None:
    broker.post(rollout("19", of=prompt(term(factor=float("nan")))))
    worker = worker_of(broker)
    step_until(worker, lambda: bool(broker.done))
    assert "expected a finite number, got nan" in broker.dead[0].reason
    assert broker.trajectories == []


@pytest.mark.parametrize(("rounds", "fate"), [(3, "retried"), (0, "dead")])
def test_an_unexpected_error_crashes_and_what_caused_it_comes_late_or_never(
    broker: FakeBroker, rounds: int, fate: str
) -> None:
    broker.post(rollout("19"))
    broker.post(rollout("19"))
    worker = worker_of(broker, FakeScorer(failures=[ZeroDivisionError("by 0")], lasts=False), retry_rounds=rounds)
    with pytest.raises(ZeroDivisionError):
        step_until(worker, lambda: len(broker.done) == 2)
    assert len(getattr(broker, fate)) == len(broker.sent) - len(broker.trajectories) == 1
    assert [letter.reason for letter in broker.dead] == ["verifier crashed: ZeroDivisionError('by 0') (1 attempts)"][
        rounds:
    ]


def test_a_scorer_that_is_unfit_ends_its_process_and_no_rollout_is_blamed(broker: FakeBroker) -> None:
    broker.post(rollout("19"))
    worker = worker_of(broker, FakeScorer(failures=[ScorerUnfit("a wrong answer 1, expected at most 0.2")]))
    with pytest.raises(ScorerUnfit):
        step_until(worker, lambda: bool(broker.done))
    assert (broker.sent, broker.done) == ([], [])


def test_a_visit_that_hangs_is_dead_lettered_and_the_others_go_on(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    broker.post(rollout("hangs"))
    hanging = FakeScorer(gate=gate)
    worker = worker_of(broker, hanging, visit_limit_seconds=0.1)
    step_until(worker, lambda: bool(broker.dead))
    gate.set()
    monkeypatch.setattr(worker._slots, "_limit", 60.0)
    broker.post(rollout("19"))
    step_until(worker, lambda: bool(broker.trajectories))
    assert [letter.reason for letter in broker.dead] == ["verifier exceeded 0.1 s"]
    assert [list(t.rewards) for t in broker.trajectories] == [[2]]


DOWN = PassingFault("judge answered 503")


def test_a_passing_fault_is_tried_again_here_and_the_score_counts_the_attempts(broker: FakeBroker) -> None:
    broker.post(rollout("19"))
    clock = Clock()
    worker = worker_of(broker, FakeScorer(failures=[DOWN, DOWN], lasts=False), clock=clock)
    for _ in range(3):
        turn_until_idle(worker)
        assert broker.sent == []
        clock.now += 0.5
    step_until(worker, lambda: bool(broker.trajectories))
    [trajectories] = broker.trajectories
    assert trajectories.rollout.scores[0].attempts == 3
    assert trajectories.rewards.tolist() == [2]
    assert (broker.retried, broker.dead) == ([], [])


def run_through_attempts(worker: Worker, clock: Clock, until: Callable[[], bool]) -> None:
    def late_enough() -> bool:
        clock.now += 2.0
        return until()

    step_until(worker, late_enough)


def test_after_four_attempts_a_rollout_comes_late_and_its_first_record_is_done_when_that_is_sent(
    broker: FakeBroker,
) -> None:
    broker.post(rollout("19"))
    clock = Clock()
    worker = worker_of(broker, FakeScorer(failures=[DOWN]), clock=clock)
    run_through_attempts(worker, clock, lambda: bool(broker.retried))
    [late] = broker.retried
    assert late.retry is not None
    assert (late.retry.rounds, late.retry.attempts) == (1, 4)
    assert 0 < late.retry.not_before - clock.now <= 20
    assert (late.scores, broker.done) == ((), [])
    broker.deliver()
    assert broker.done == [0]


def test_a_late_rollout_is_left_alone_until_its_time(broker: FakeBroker) -> None:
    broker.post(rollout("19", retry=Retry(rounds=1, attempts=4, not_before=1_020.0)), late=True)
    clock = Clock(1_019.0)
    worker = worker_of(broker, clock=clock)
    turn_until_idle(worker)
    assert broker.sent == []
    clock.now = 1_020.0
    step_until(worker, lambda: bool(broker.trajectories))
    broker.deliver()
    assert broker.trajectories[0].rollout.scores[0].attempts == 5
    assert (broker.late_done, broker.done) == ([0], [])


def test_after_the_last_round_it_is_dead_lettered_with_the_reason_and_the_number_of_attempts(
    broker: FakeBroker,
) -> None:
    broker.post(rollout("19", retry=Retry(rounds=3, attempts=12, not_before=0.0)), late=True)
    clock = Clock()
    worker = worker_of(broker, FakeScorer(failures=[DOWN]), clock=clock)
    run_through_attempts(worker, clock, lambda: bool(broker.dead))
    [letter] = broker.dead
    assert (letter.reason, letter.issue_id) == ("judge answered 503 (16 attempts)", 7)
    assert (broker.late_done, broker.trajectories, broker.retried) == ([0], [], [])


def test_a_rollout_that_is_replayed_begins_anew(broker: FakeBroker) -> None:
    broker.post(rollout("19", retry=Retry(rounds=3, attempts=16, not_before=1e9)))
    worker = worker_of(broker)
    step_until(worker, lambda: bool(broker.trajectories))
    assert broker.trajectories[0].rollout.scores[0].attempts == 1


def test_those_that_wait_leave_room_for_others(broker: FakeBroker) -> None:
    for _ in range(6):
        broker.post(rollout("19"))
    worker = worker_of(broker, FakeScorer(failures=[DOWN] * 6, lasts=False), window=4)
    step_until(worker, lambda: len(broker.retried) == 4)  # two may wait in a window of four
    broker.post(rollout("19"))
    step_until(worker, lambda: bool(broker.trajectories))


def test_draining_hands_back_what_waits_for_another_attempt(broker: FakeBroker) -> None:
    broker.post(rollout("19"))
    worker = worker_of(broker, FakeScorer(failures=[DOWN]))
    turn_until_idle(worker)
    worker.drain()
    assert (broker.sent, broker.done) == ([], [])


def test_a_fault_while_draining_is_handed_back_too(broker: FakeBroker) -> None:
    gate = threading.Event()
    broker.post(rollout("19"))
    worker = worker_of(broker, FakeScorer(failures=[DOWN], gate=gate))
    worker.step()
    gate.set()
    worker.drain()
    assert (broker.sent, broker.done) == ([], [])


def test_a_task_that_cannot_be_scored_does_not_stop_the_others(broker: FakeBroker) -> None:
    broker.post(rollout("19", of=prompt(task_id=2)))
    for _ in range(60):
        broker.post(rollout())
    broker.post(rollout("19", of=prompt(task_id=2)))
    worker = worker_of(broker, parallel_rollouts=1)
    step_until(worker, lambda: len(broker.trajectories) == 2)
    assert len(broker.dead) == 60


def test_many_bad_in_a_row_crash_before_the_topic_is_emptied(broker: FakeBroker) -> None:
    for _ in range(60):
        broker.post(b"no message at all")
    worker = worker_of(broker)
    with pytest.raises(TooManyBad):
        step_until(worker, lambda: len(broker.dead) == 60)
    assert len(broker.dead) == len(broker.done) == 50


def test_no_more_rollouts_are_taken_than_can_be_in_the_scorer(broker: FakeBroker) -> None:
    gate = threading.Event()
    for _ in range(5):
        broker.post(rollout("19"))
    worker = worker_of(broker, FakeScorer(gate=gate), parallel_rollouts=2)
    worker.step()
    worker.step()
    assert len(broker.records) == 3
    gate.set()
    step_until(worker, lambda: len(broker.trajectories) == 5)


def test_draining_finishes_what_is_in_the_scorer_and_gives_the_rest_back(broker: FakeBroker) -> None:
    gate = threading.Event()
    for _ in range(3):
        broker.post(rollout("19"))
    worker = worker_of(broker, FakeScorer(gate=gate), parallel_rollouts=2)
    worker.step()
    gate.set()
    worker.drain()
    assert sorted(broker.done) == [0, 1]
    assert len(broker.trajectories) == 2
    assert len(broker.records) == 1
