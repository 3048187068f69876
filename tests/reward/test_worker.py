"""Nothing is done before it is delivered; what cannot be scored is told, not zeroed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from services.reward.scorer import ScoringFailed
from services.reward.worker import Worker
from tba_common.codec import BadMessage
from tba_common.delivery import TooManyBad
from tba_common.kafka import DeliveryError
from tba_common.messages import Resumed, Rollout
from tests.reward.fakes import FakeBroker, FakeScorer
from tests.reward.rollouts import prompt, rollout, term


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


def worker_of(broker: FakeBroker, scorer: FakeScorer | None = None, *, parallel_rollouts: int = 2) -> Worker:
    return Worker(
        scorer=scorer or FakeScorer(),
        consumer=broker.consumer(),
        producer=broker.producer(),
        dead_letters=broker.dead_letters(),
        parallel_rollouts=parallel_rollouts,
    )


def step_until(worker: Worker, condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Turn the loop until the condition holds; fail after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        worker.step()


def test_the_last_scorer_sends_trajectories_with_rewards(broker: FakeBroker) -> None:
    broker.post(rollout("19", "190"))
    with worker_of(broker) as worker:
        step_until(worker, lambda: bool(broker.sent))
    [(topic, _, key)] = broker.sent
    assert (topic, key) == ("tba.trajectories", "3")
    assert broker.trajectories[0].rewards.tolist() == [2, 3]
    assert broker.trajectories[0].rollout.scores[0].seconds >= 0


def test_a_scorer_in_between_forwards_along_the_slip(broker: FakeBroker) -> None:
    broker.post(rollout("19", remaining=("verifier", "judge")))
    with worker_of(broker) as worker:
        step_until(worker, lambda: bool(broker.sent))
    [(topic, message, key)] = broker.sent
    assert (topic, key) == ("tba.rollouts.judge", "3")
    assert isinstance(message, Rollout)
    assert message.remaining == ("judge",)
    assert message.scores[0].values.tolist() == [2]


def test_a_rollout_is_done_only_after_delivery(broker: FakeBroker) -> None:
    broker.post(rollout("19"))
    with worker_of(broker) as worker:
        step_until(worker, lambda: bool(broker.sent))
        assert broker.done == []
        broker.deliver()
        assert broker.done == [0]


def test_an_idle_worker_notices_that_a_send_was_lost(broker: FakeBroker) -> None:
    broker.post(rollout("19"))
    with worker_of(broker) as worker:
        step_until(worker, lambda: bool(broker.sent))
        broker.works = False
        with pytest.raises(DeliveryError):
            worker.step()
    assert broker.done == []


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"no message at all", "rollout/1 does not decode"),
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
    with worker_of(broker) as worker:
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
    with worker_of(broker, FakeScorer(failure=failure)) as worker:
        step_until(worker, lambda: bool(broker.done))
    [letter] = broker.dead
    assert (letter.reason, letter.issue_id, letter.service) == (str(failure), 7, "tba-reward-verifier")
    assert broker.trajectories == []
    assert broker.done == [0]


def test_a_score_that_is_not_a_number_is_dead_lettered(broker: FakeBroker) -> None:
    broker.post(rollout("19", of=prompt(term(factor=float("nan")))))
    with worker_of(broker) as worker:
        step_until(worker, lambda: bool(broker.done))
    assert "expected a finite number, got nan" in broker.dead[0].reason
    assert broker.trajectories == []


def test_an_unexpected_error_crashes_with_nothing_done(broker: FakeBroker) -> None:
    broker.post(rollout("19"))
    with worker_of(broker, FakeScorer(failure=ZeroDivisionError())) as worker, pytest.raises(ZeroDivisionError):
        step_until(worker, lambda: bool(broker.sent))
    assert (broker.sent, broker.done) == ([], [])


def test_many_bad_in_a_row_crash_before_the_topic_is_emptied(broker: FakeBroker) -> None:
    for _ in range(60):
        broker.post(b"no message at all")
    with worker_of(broker) as worker, pytest.raises(TooManyBad):
        step_until(worker, lambda: len(broker.dead) == 60)
    assert len(broker.dead) == len(broker.done) == 50


def test_no_more_rollouts_are_taken_than_can_be_in_the_scorer(broker: FakeBroker) -> None:
    gate = threading.Event()
    for _ in range(5):
        broker.post(rollout("19"))
    with worker_of(broker, FakeScorer(gate=gate), parallel_rollouts=2) as worker:
        worker.step()
        worker.step()
        assert len(broker.records) == 3
        gate.set()
        step_until(worker, lambda: len(broker.trajectories) == 5)


def test_draining_finishes_what_is_in_the_scorer_and_gives_the_rest_back(broker: FakeBroker) -> None:
    gate = threading.Event()
    for _ in range(3):
        broker.post(rollout("19"))
    with worker_of(broker, FakeScorer(gate=gate), parallel_rollouts=2) as worker:
        worker.step()
        gate.set()
        worker.drain()
    assert sorted(broker.done) == [0, 1]
    assert len(broker.trajectories) == 2
    assert len(broker.records) == 1
