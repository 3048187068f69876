"""The one line that says what the run waits for. Pure: facts in, sentence out; the first cause up the line wins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

#: `stalled` wants a person; `waiting` passes by itself or wants a task.
State = Literal["running", "waiting", "stalled"]

SILENT_BUFFER_SECONDS: Final = 30.0
SILENT_SECONDS: Final = 120.0
_UNUSUALLY_LONG: Final = 10  # times what a step took lately

#: Why the buffer draws no batch (limiter.py), in words.
_BLOCKED: Final = {
    "min_size": "The buffer is filling: {trajectories} trajectories so far, not enough for a first batch.",
    "not_ready": "The buffer waits until enough completions of enough prompts have come back.",
    "stale": "What the buffer holds is too old to train on: it waits for completions of newer weights.",
    "ratio": "The learner is ahead of the generators: the buffer waits for new trajectories.",
    "index_ahead": "The buffer's index holds prompts that its tables do not: restart it, which reads the index anew.",
    "in_flight": "Nothing: the learner works on the batches it has, and everything before it keeps up.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the tables say about the run. Ages in seconds; None where there is nothing yet."""

    policy_version: int | None
    tasks_active: int
    tasks_paused: int
    trajectories: int
    prompts_in_flight: int
    blocked: str | None
    buffer_silent_seconds: float | None
    since_trajectory_seconds: float | None
    since_step_seconds: float | None
    usual_step_seconds: float | None
    refusal: str | None = None  # why the latest orders were dead-lettered, if all of them were


def waiting_for(facts: Facts) -> tuple[State, str]:
    """Return how the run is, and one sentence: what it waits for, or that it waits for nothing."""
    if facts.buffer_silent_seconds is None:
        return "waiting", "The buffer service has not started this run yet."
    if facts.buffer_silent_seconds > SILENT_BUFFER_SECONDS:
        return "stalled", f"The buffer service has been silent for {facts.buffer_silent_seconds:.0f} s: is it running?"
    if facts.policy_version is None:
        return "waiting", "The learner has not published the first policy version yet."
    if facts.tasks_active == 0:
        sentence = "Every task is paused: resume one." if facts.tasks_paused else "There is no task: post one."
        return "waiting", sentence
    if facts.blocked == "in_flight" and _learner_is_silent(facts):
        return "stalled", f"No step for {facts.since_step_seconds:.0f} s with batches waiting: is the learner running?"
    if facts.blocked != "in_flight" and facts.refusal is not None:
        return "stalled", f"The latest prompts could not be served, the last one because: {facts.refusal}"
    if facts.blocked != "in_flight" and facts.prompts_in_flight and _is_long(facts.since_trajectory_seconds):
        out = f"{facts.prompts_in_flight} prompts are out"
        sentence = (
            f"No trajectory for {facts.since_trajectory_seconds:.0f} s while {out}: do generators and scorers run?"
        )
        return "stalled", sentence
    if facts.trajectories == 0:
        return "waiting", f"The first completions are on their way: {facts.prompts_in_flight} prompts are out."
    if facts.blocked is None:
        return "running", "Nothing: batches flow to the learner."
    reason = _BLOCKED.get(facts.blocked, "The buffer draws no batch: {blocked}.")
    state: State = "running" if facts.blocked == "in_flight" else "waiting"
    return state, reason.format(trajectories=facts.trajectories, blocked=facts.blocked)


def _learner_is_silent(facts: Facts) -> bool:
    usual = facts.usual_step_seconds or 0.0
    return _is_long(facts.since_step_seconds) and (facts.since_step_seconds or 0.0) > _UNUSUALLY_LONG * usual


def _is_long(seconds: float | None) -> bool:
    return seconds is not None and seconds > SILENT_SECONDS
