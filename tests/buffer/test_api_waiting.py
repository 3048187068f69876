from __future__ import annotations

from dataclasses import replace

import pytest

from services.buffer.api_waiting import Facts, waiting_for
from services.buffer.limiter import REASONS

FLOWING = Facts(
    policy_version=7,
    tasks_active=1,
    tasks_paused=0,
    trajectories=900,
    prompts_in_flight=12,
    blocked=None,
    buffer_silent_seconds=1.0,
    since_trajectory_seconds=0.5,
    since_step_seconds=2.0,
    usual_step_seconds=2.0,
)


def test_a_run_whose_batches_flow_waits_for_nothing() -> None:
    assert waiting_for(FLOWING) == ("running", "Nothing: batches flow to the learner.")


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        ({"buffer_silent_seconds": None, "policy_version": None}, "waiting", "has not started this run"),
        ({"buffer_silent_seconds": 31.0}, "stalled", "buffer service has been silent for 31 s"),
        ({"policy_version": None}, "waiting", "first policy version"),
        ({"tasks_active": 0}, "waiting", "no task: post one"),
        ({"tasks_active": 0, "tasks_paused": 2}, "waiting", "Every task is paused"),
        ({"trajectories": 0, "since_trajectory_seconds": None, "blocked": "min_size"}, "waiting", "12 prompts are out"),
        ({"blocked": "min_size"}, "waiting", "900 trajectories so far"),
        ({"blocked": "not_ready"}, "waiting", "enough completions of enough prompts"),
        ({"blocked": "stale"}, "waiting", "too old to train on"),
        ({"blocked": "ratio"}, "waiting", "ahead of the generators"),
        ({"blocked": "in_flight"}, "running", "the learner works on the batches it has"),
        ({"blocked": "in_flight", "since_step_seconds": 200.0}, "stalled", "No step for 200 s"),
        ({"blocked": "not_ready", "refusal": "too long"}, "stalled", "could not be served, the last one because: too"),
        ({"blocked": "in_flight", "refusal": "too long"}, "running", "the learner works on the batches it has"),
        (
            {"blocked": "ratio", "since_trajectory_seconds": 121.0},
            "stalled",
            "No trajectory for 121 s while 12 prompts",
        ),
    ],
)
def test_the_first_cause_up_the_line_is_named(change: dict[str, object], state: str, words: str) -> None:
    got, sentence = waiting_for(replace(FLOWING, **change))  # type: ignore[arg-type]
    assert got == state
    assert words in sentence


def test_a_learner_with_slow_steps_is_not_taken_for_a_dead_one() -> None:
    slow = replace(FLOWING, blocked="in_flight", since_step_seconds=200.0, usual_step_seconds=90.0)
    assert waiting_for(slow)[0] == "running"


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_of_the_limiter_has_its_sentence(reason: str) -> None:
    assert reason not in waiting_for(replace(FLOWING, blocked=reason))[1]


def test_a_reason_that_is_not_known_is_shown_as_it_is() -> None:
    assert "mystery" in waiting_for(replace(FLOWING, blocked="mystery"))[1]
