"""Nothing is done before it is delivered, evaluations get their version, and a bad prompt stops nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from services.generator.weight_sync import RETRY_SECONDS, WeightsRefused
from services.generator.worker import Worker
from tba_common.delivery import TooManyBad
from tba_common.kafka import DeliveryError
from tba_common.messages import Prompt, Resumed, Weights
from tba_common.tasks import Exploration, Sampling, ScorerTerm
from tba_common.weights import WeightStore
from tests.generator.fakes import BlankVersions, ContinuousEngine, FakeBroker, weight_sync


def prompt(issue_id: int = 1, *, completions: int = 2, version: int | None = None, **changes: Any) -> Prompt:
    """A training prompt, or with a version the evaluation of it."""
    sampling = Sampling(completions=completions, max_new_tokens=4, temperature=1.0 if version is None else 0.0)
    fields: dict[str, Any] = {
        "run_id": "run",
        "issue_id": issue_id,
        "task_id": 1,
        "prompt_id": issue_id + 100,
        "purpose": "train" if version is None else "eval",
        "policy_version": version,
        "text": "1+2=",
        "sampling": sampling,
        "reward": (ScorerTerm(scorer="verifier"),),
    }
    return Prompt(**(fields | changes))


class Versions(Protocol):
    """Where versions come from."""

    store: WeightStore

    def publish(self, version: int) -> Weights: ...


class Line:
    """A worker between fake ends, with a real store in which versions appear."""

    def __init__(self, versions: Versions, engine: Any, *, max_completions: int = 8) -> None:
        self.now = 0.0
        self.broker = FakeBroker()
        self.versions = versions
        self.weights = weight_sync(engine, self.broker, versions.store, lambda: self.now)
        self.worker = Worker(
            engine=engine,
            weights=self.weights,
            consumer=self.broker.consumer(),
            producer=self.broker.producer(),
            dead_letters=self.broker.dead_letters(),
            run_id="run",
            name="here/1",
            max_completions=max_completions,
            rng=np.random.default_rng(0),
        )

    def announce(self, version: int) -> None:
        self.broker.announce(self.versions.publish(version))

    def answered(self) -> list[int]:
        return [rollout.prompt.issue_id for rollout in self.broker.rollouts]


@pytest.fixture
def engine() -> ContinuousEngine:
    return ContinuousEngine()


@pytest.fixture
def line(tmp_path: Path, engine: ContinuousEngine) -> Line:
    """A line that serves version 1."""
    line = Line(BlankVersions(tmp_path), engine)
    line.announce(1)
    line.worker.step()
    return line


def finish(line: Line, engine: ContinuousEngine) -> None:
    """Submit what can be, let it finish, and send it."""
    line.worker.step()
    engine.finish()
    line.worker.step()


def test_no_prompt_is_taken_before_there_are_weights(tmp_path: Path, engine: ContinuousEngine) -> None:
    line = Line(BlankVersions(tmp_path), engine)
    line.broker.post(prompt())
    line.worker.step()
    assert len(line.broker.prompts) == 1
    assert line.worker.trouble == "waiting for the first weights"
    line.announce(1)
    finish(line, engine)
    engine.finish()
    line.worker.step()
    assert line.answered() == [1]
    assert line.worker.trouble == ""


def test_a_prompt_becomes_a_rollout_for_its_first_scorer(line: Line, engine: ContinuousEngine) -> None:
    line.broker.post(prompt(7, completions=3))
    finish(line, engine)
    ((topic, rollout, key),) = line.broker.sent
    assert (topic, key) == ("tba.rollouts.verifier", "107")
    assert rollout == line.broker.rollouts[0]
    (rollout,) = line.broker.rollouts
    assert rollout.prompt == prompt(7, completions=3)
    assert rollout.prompt_token_ids.tolist() == [2, 3]
    assert len(rollout.completions) == 3
    assert (rollout.temperature, rollout.top_p, rollout.generator) == (1.0, 1.0, "here/1")
    assert (rollout.remaining, rollout.scores) == (("verifier",), ())


def test_given_answers_are_sent_on_without_being_sampled(line: Line, engine: ContinuousEngine) -> None:
    line.broker.post(prompt(3, completions=1, given=("a", "b")))
    line.worker.step()
    assert engine.running == {}
    (rollout,) = line.broker.rollouts
    assert len(rollout.completions) == 2
    assert rollout.remaining == ("verifier",)
    assert line.broker.done == [0]


def test_a_prompt_is_done_only_after_its_rollout_is_delivered(line: Line, engine: ContinuousEngine) -> None:
    line.broker.post(prompt())
    line.worker.step()
    assert line.broker.events == []
    engine.finish()
    line.worker.step()
    assert line.broker.events == ["send tba.rollouts.verifier", "delivered", "done 0"]


def test_without_delivery_nothing_is_done_and_the_process_ends(line: Line, engine: ContinuousEngine) -> None:
    line.broker.post(prompt())
    line.worker.step()
    engine.finish()
    line.broker.delivers = False
    with pytest.raises(DeliveryError):
        line.worker.step()
    assert line.broker.done == []


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"\xc1", "prompt/1 does not decode"),
        (Resumed(run_id="run", batch_id=1, step=1), "expected a prompt, got a resumed"),
        (prompt(reward=()), "at least one scorer"),
        (prompt(purpose="eval"), "expected policy_version"),
        (prompt(text="too long"), "too long for the model"),
    ],
)
def test_a_bad_message_goes_to_the_dead_letters_and_the_next_is_answered(
    line: Line, engine: ContinuousEngine, bad: Any, reason: str
) -> None:
    line.broker.post(bad)
    line.broker.post(prompt(2))
    finish(line, engine)
    assert [reason in letter.reason for letter in line.broker.dead] == [True]
    assert line.answered() == [2]
    assert line.broker.done == [0, 1]


def test_a_group_too_large_for_a_record_goes_to_the_dead_letters(line: Line, engine: ContinuousEngine) -> None:
    line.broker.largest_group = 3
    line.broker.post(prompt(1, completions=4))
    line.broker.post(prompt(2, completions=3))
    finish(line, engine)
    assert [(letter.issue_id, letter.reason) for letter in line.broker.dead] == [(1, "rollout/1 is too large")]
    assert line.answered() == [2]
    assert sorted(line.broker.done) == [0, 1]


def test_many_bad_messages_in_a_row_end_the_process(line: Line) -> None:
    for _ in range(51):
        line.broker.post(b"\xc1")
    with pytest.raises(TooManyBad):
        line.worker.step()
    assert len(line.broker.done) == 50


def test_however_many_prompts_do_not_fit_the_model_the_others_are_answered(
    line: Line, engine: ContinuousEngine
) -> None:
    for issue_id in range(60):
        line.broker.post(prompt(issue_id, text="too long"))
    line.broker.post(prompt(60))
    for _ in range(61):
        finish(line, engine)
    assert len(line.broker.dead) == 60
    assert line.answered() == [60]


def test_prompts_share_the_engine_up_to_its_limit_and_a_larger_group_goes_alone(
    line: Line, engine: ContinuousEngine
) -> None:
    for issue_id, completions in enumerate((3, 4, 2, 20, 1)):
        line.broker.post(prompt(issue_id, completions=completions))
    together = []
    for _ in range(4):
        line.worker.step()
        together.append([request.completions for request, _ in engine.running.values()])
        engine.finish()
        line.worker.step()
    assert together == [[3, 4], [2], [20], [1]]


def test_exploration_is_drawn_per_group_and_recorded(line: Line, engine: ContinuousEngine) -> None:
    exploration = Exploration(probability=1.0, temperature_low=0.5, temperature_high=1.5, top_p_low=0.8)
    sampling = Sampling(completions=1, exploration=exploration)
    for issue_id in range(4):
        line.broker.post(prompt(issue_id, sampling=sampling))
    line.worker.step()
    asked = {(request.temperature, request.top_p) for request, _ in engine.running.values()}
    engine.finish()
    line.worker.step()
    assert len(asked) == 4
    assert {(rollout.temperature, rollout.top_p) for rollout in line.broker.rollouts} == asked


def test_requests_in_flight_live_through_a_swap_and_keep_their_oldest_version(
    line: Line, engine: ContinuousEngine
) -> None:
    line.broker.post(prompt(1))
    line.worker.step()
    line.announce(2)
    line.broker.post(prompt(2))
    finish(line, engine)
    assert engine.loads == [1, 2]
    assert [c.policy_version for r in line.broker.rollouts for c in r.completions] == [1, 1, 2, 2]


def test_an_evaluation_holds_the_weights_until_it_is_answered(line: Line, engine: ContinuousEngine) -> None:
    line.broker.post(prompt(1, version=1))
    line.worker.step()
    line.announce(2)
    line.worker.step()
    assert engine.policy_version == 1
    finish(line, engine)
    line.worker.step()
    assert engine.policy_version == 2
    assert [c.policy_version for r in line.broker.rollouts for c in r.completions] == [1, 1]


def test_evaluations_of_past_versions_are_sampled_together_oldest_first_before_training_goes_on(
    line: Line, engine: ContinuousEngine
) -> None:
    for version in (2, 3, 4):
        line.announce(version)
        line.worker.step()
    for issue_id, pinned in enumerate((None, 3, 2, None, 3, 2)):
        line.broker.post(prompt(issue_id, version=pinned))
    for _ in range(6):
        finish(line, engine)
    assert engine.loads == [1, 2, 3, 4, 2, 3, 4]
    # The first training prompts run with 4 while the weights still are there; then no training from old weights.
    assert {r.prompt.issue_id: r.completions[0].policy_version for r in line.broker.rollouts} == {
        0: 4, 1: 3, 2: 2, 3: 4, 4: 3, 5: 2
    }  # fmt: skip


def test_training_waits_while_an_old_version_serves_an_evaluation(line: Line, engine: ContinuousEngine) -> None:
    line.announce(2)
    line.worker.step()
    line.broker.post(prompt(1, version=1))
    line.worker.step()
    line.broker.post(prompt(2))
    line.worker.step()
    assert [request.request_id for request, _ in engine.running.values()] == [0]
    engine.finish()
    line.worker.step()
    finish(line, engine)
    assert {r.prompt.issue_id: r.completions[0].policy_version for r in line.broker.rollouts} == {1: 1, 2: 2}


def test_an_evaluation_of_a_version_that_is_gone_goes_to_the_dead_letters(line: Line, engine: ContinuousEngine) -> None:
    for issue_id in range(60):  # more than the limit of bad messages in a row
        line.broker.post(prompt(issue_id, version=0))
    line.worker.step()
    line.now = RETRY_SECONDS
    line.worker.step()
    line.broker.post(prompt(60))
    finish(line, engine)
    assert len(line.broker.dead) == 60
    assert "version 0 failed twice" in line.broker.dead[0].reason
    assert line.answered() == [60]
    assert line.worker.trouble == ""


def test_training_goes_on_while_an_evaluation_s_version_is_tried_again(line: Line, engine: ContinuousEngine) -> None:
    line.broker.post(prompt(1, version=0))
    line.broker.post(prompt(2))
    finish(line, engine)
    assert line.answered() == [2]


def test_newest_weights_that_fail_twice_end_the_process_while_the_old_ones_served_to_the_end(
    line: Line, engine: ContinuousEngine
) -> None:
    engine.damaged = {2}
    line.announce(2)
    line.broker.post(prompt(1))
    finish(line, engine)
    assert line.broker.rollouts[0].completions[0].policy_version == 1
    assert "canary gap" in line.worker.trouble
    line.now = RETRY_SECONDS
    with pytest.raises(WeightsRefused, match="version 2 failed twice"):
        line.worker.step()


def test_draining_finishes_what_is_in_flight_and_leaves_the_rest_uncommitted(
    line: Line, engine: ContinuousEngine
) -> None:
    for issue_id in range(6):
        line.broker.post(prompt(issue_id, completions=3))
    line.worker.step()
    engine.finish()
    line.worker.drain()
    assert line.answered() == [0, 1]
    assert line.broker.done == [0, 1]
    assert not line.broker.taking


def test_what_is_not_finished_when_time_runs_out_is_left_to_another(line: Line, engine: ContinuousEngine) -> None:
    line.broker.post(prompt(1))
    line.broker.post(prompt(2))
    line.worker.step()
    times = iter((60.0, 30.0, 7.0))
    engine.finishing = [next(iter(engine.running))]
    line.worker.drain(lambda: next(times))
    assert line.answered() == [1]
    assert line.broker.done == [0]


def test_a_task_of_which_no_rollout_fits_does_not_stop_another_that_is_served(
    line: Line, engine: ContinuousEngine
) -> None:
    line.broker.largest_group = 2
    line.broker.post(prompt(1, task_id=2))
    finish(line, engine)
    for issue_id in range(2, 62):
        line.broker.post(prompt(issue_id, completions=3))
        finish(line, engine)
    assert line.answered() == [1]
    assert len(line.broker.dead) == 60
