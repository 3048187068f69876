"""What the law of scaling is told, and what it answers: signals, the fleet, limits, a decision with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Why a decision is what it is. The first five change the number or keep it against the signals.
Reason = Literal[
    "override",  # a person said so
    "limits",  # outside of minimum and maximum
    "start",  # a task became active, there was none
    "demand",  # the learner eats more than these can bring
    "starving",  # the learner waits although demand was met on paper
    "surplus",  # fewer bring enough, and have done for long
    "no_task",  # nothing to do, for long
    "no_signals",
    "old_signals",
    "pending",  # wanted more, but those asked for last are not there yet
    "admission_limited",  # wanted more, but no more prompts may be given out
    "no_gain",  # wanted more, but the last ones brought nothing: something else is the bottleneck
    "settling",  # wanted a change, but the last one is too fresh to be judged
    "in_flight",  # wanted fewer, but they could not answer in time what is in flight
    "steady",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What the API says of the line (`GET /v1/autoscaler`, `signals`). Seconds, and trajectories a second."""

    age_seconds: float  # since the buffer last said anything
    tasks_active: int
    wait_ratio: float | None  # share of the last minutes that the learner waited; None before it ever could train
    step_seconds: float | None  # of computing, without the waiting
    batch_trajectories: int | None
    samples_per_insert: float  # most draws of a trajectory, on average
    trajectories_per_second: float  # that came back in the last minute
    fresh_steps: float  # steps that what came back and was not drawn yet is good for
    stock_steps: float  # steps that may be taken before samples_per_insert asks for more
    staleness_versions: float | None  # mean of what was trained lately
    admission_capacity: int  # groups that may be in flight before those made now would be too old
    in_flight_prompts: int
    in_flight_completions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The generators there are: `replicas` asked for, `ready` of them sampling. The rest is pending."""

    replicas: int
    ready: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a deployment chose."""

    min_replicas: int = 1  # while a task is active
    max_replicas: int = 8
    headroom: float = 0.15
    starving_ratio: float = 0.05
    calm_ratio: float = 0.02
    settle_seconds: float = 120.0
    down_after_seconds: float = 600.0
    down_every_seconds: float = 120.0
    zero_after_seconds: float = 900.0
    max_age_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Decision:
    """`sentence` is for people, `reason` for machines."""

    desired: int
    reason: Reason
    sentence: str
