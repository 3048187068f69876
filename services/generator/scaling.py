"""How many generators there should be: the law, pure. Signals and time come in, a decision with its reason goes out.

Prompts are an endless supply, so their backlog says nothing; what counts is whether the learner waits. Demand (what
the learner eats) over rate (what one generator brings) says how many are needed; waiting corrects it. It never goes
up when more could not help, goes down slowly and by one, and holds when it cannot see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

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

_DEADLINE_SECONDS: Final = 60.0  # what is in flight longer than this, the buffer may send again (TBA_REISSUE_SECONDS)
_MARGIN: Final = 0.25  # one fewer must still have this much to spare, or demand that trembles would drive us
_LEAST_GAIN: Final = 0.25  # of the rate that was to be expected from those added last
_SMOOTHING: Final = 0.3
_REMEMBERED_SECONDS: Final = 3_600.0  # a size that starved the learner is not tried again within this


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
    staleness_versions: float | None  # mean of what was trained lately
    admission_capacity: int  # groups that may be out before those made now would be too old
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


@dataclass(frozen=True, slots=True)
class Starved:
    """The learner waited with this many generators, when it could eat `demand`."""

    replicas: int
    demand: float
    at: float


@dataclass(frozen=True, slots=True)
class Raised:
    """What came from this many generators when more were asked for."""

    replicas: int
    rate: float
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the law knows from before. A new one only makes it slower to judge."""

    fleet: Fleet | None = None
    changed_at: float = 0.0  # when the fleet, or whether there is work, last changed
    has_work: bool = False
    rate: float | None = None  # of one generator that always has work
    surplus_since: float | None = None
    starved: Starved | None = None
    raised: Raised | None = None


def decide(
    signals: Signals | None, fleet: Fleet, memory: Memory, limits: Limits, *, now: float, override: int | None = None
) -> tuple[Decision, Memory]:
    """Return what to do, and what to remember. `now` is any clock in seconds; `override` is a person's number."""
    if override is not None:
        chosen = min(override, limits.max_replicas)
        return Decision(chosen, "override", f"a person asked for {chosen}"), _looked(memory, fleet, None, now)
    if signals is None or signals.age_seconds > limits.max_age_seconds:
        return _blind(signals, fleet), _looked(memory, fleet, None, now)
    memory = _looked(memory, fleet, signals, now)
    memory = _measured(memory, fleet, signals, limits, now)
    if signals.tasks_active == 0:
        return _without_work(signals, fleet, memory, limits, now), memory
    if fleet.replicas == 0:
        first = min(max(needed(signals, memory, limits) or 0, limits.min_replicas, 1), limits.max_replicas)
        return Decision(first, "start", f"{signals.tasks_active} active tasks, no generator"), memory
    clamped = min(max(fleet.replicas, limits.min_replicas), limits.max_replicas)
    if clamped != fleet.replicas:
        bounds = f"between {limits.min_replicas} and {limits.max_replicas}"
        return Decision(clamped, "limits", f"{fleet.replicas} is not {bounds}"), memory
    return _with_work(signals, fleet, memory, limits, now)


def demand(signals: Signals) -> float | None:
    """Trajectories a second that a learner that never waits needs; None while that is unknown."""
    if not signals.step_seconds or not signals.batch_trajectories:
        return None
    return signals.batch_trajectories / signals.step_seconds / signals.samples_per_insert


def needed(signals: Signals, memory: Memory, limits: Limits, margin: float = 0.0) -> int | None:
    """Generators that meet the demand with headroom; None while demand or rate is unknown."""
    wanted = demand(signals)
    if wanted is None or not memory.rate:
        return None
    return math.ceil(wanted * (1 + limits.headroom) * (1 + margin) / memory.rate)


def _blind(signals: Signals | None, fleet: Fleet) -> Decision:
    if signals is None:
        return Decision(fleet.replicas, "no_signals", "the API gives no signals: nothing is changed")
    silent = f"the buffer has been silent for {signals.age_seconds:.0f} s: nothing is changed"
    return Decision(fleet.replicas, "old_signals", silent)


def _looked(memory: Memory, fleet: Fleet, signals: Signals | None, now: float) -> Memory:
    """Notice a change of the fleet, and the first and last moment with work."""
    has_work = memory.has_work if signals is None else signals.tasks_active > 0 or signals.in_flight_prompts > 0
    if has_work != memory.has_work:
        memory = replace(memory, has_work=has_work, changed_at=now, surplus_since=None)
    return memory if fleet == memory.fleet else replace(memory, fleet=fleet, changed_at=now)


def _measured(memory: Memory, fleet: Fleet, signals: Signals, limits: Limits, now: float) -> Memory:
    """Learn what one generator brings. One that was kept waiting shows only that it brings no less."""
    if not fleet.ready or signals.trajectories_per_second <= 0 or now - memory.changed_at < limits.settle_seconds:
        return memory
    seen = signals.trajectories_per_second / fleet.ready
    if memory.rate is None:
        return replace(memory, rate=seen)
    if signals.admission_capacity <= 0:
        return replace(memory, rate=max(memory.rate, seen))
    return replace(memory, rate=memory.rate + _SMOOTHING * (seen - memory.rate))


def _without_work(signals: Signals, fleet: Fleet, memory: Memory, limits: Limits, now: float) -> Decision:
    if signals.in_flight_prompts > 0:
        return Decision(fleet.replicas, "in_flight", f"no active task, {signals.in_flight_prompts} prompts in flight")
    if fleet.replicas == 0 or now - memory.changed_at >= limits.zero_after_seconds:
        return Decision(0, "no_task", "no task is active")
    return Decision(fleet.replicas, "settling", f"no task is active since {now - memory.changed_at:.0f} s")


def _with_work(
    signals: Signals, fleet: Fleet, memory: Memory, limits: Limits, now: float
) -> tuple[Decision, Memory]:
    wait = signals.wait_ratio or 0.0
    wanted = needed(signals, memory, limits) or 0
    settled = fleet.ready >= fleet.replicas and now - memory.changed_at >= limits.settle_seconds
    starving = signals.wait_ratio is not None and wait > limits.starving_ratio
    if starving and settled and signals.admission_capacity > 0:
        memory = replace(memory, starved=Starved(fleet.replicas, demand(signals) or 0.0, now))
    if starving or (wanted > fleet.replicas and wait > limits.calm_ratio):
        return _up(signals, fleet, replace(memory, surplus_since=None), limits, now, wanted, settled)
    enough = needed(signals, memory, limits, _MARGIN)
    if enough is None or enough >= fleet.replicas or fleet.replicas <= limits.min_replicas or wait > limits.calm_ratio:
        sentence = f"the learner waits {wait:.0%} of the time; {wanted or 'an unknown number'} needed"
        return Decision(fleet.replicas, "steady", sentence), replace(memory, surplus_since=None)
    if memory.surplus_since is None:
        memory = replace(memory, surplus_since=now)
    return _down(signals, fleet, memory, limits, now, enough), memory


def _up(
    signals: Signals, fleet: Fleet, memory: Memory, limits: Limits, now: float, wanted: int, settled: bool
) -> tuple[Decision, Memory]:
    replicas, wait = fleet.replicas, f"the learner waits {signals.wait_ratio or 0:.0%} of the time"
    if fleet.ready < replicas:
        return Decision(replicas, "pending", f"{wait}; {replicas - fleet.ready} are not ready yet"), memory
    if signals.admission_capacity <= 0:
        return Decision(replicas, "admission_limited", f"{wait}; no more prompts may be out"), memory
    if not settled and wanted <= replicas:
        return Decision(replicas, "settling", f"{wait}; {replicas} since {now - memory.changed_at:.0f} s"), memory
    if replicas >= limits.max_replicas:
        return Decision(replicas, "limits", f"{wait}; {max(wanted, replicas + 1)} needed, this is the most"), memory
    total, before = signals.trajectories_per_second, memory.raised
    if before is not None and before.replicas < replicas and now - before.at < _REMEMBERED_SECONDS:
        expected = before.rate * (1 + _LEAST_GAIN * (replicas - before.replicas) / before.replicas)
        if total <= expected:
            sentence = f"{wait}; {before.replicas} brought {before.rate:.2f} trajectories/s, {replicas} bring {total:.2f}"
            return Decision(replicas, "no_gain", sentence), memory
    # At most twice as many at once: a rate that was measured too low must not ask for the whole cluster.
    desired = min(max(wanted, replicas + 1), 2 * replicas, limits.max_replicas)
    reason: Reason = "demand" if wanted > replicas else "starving"
    return Decision(desired, reason, f"{wait}; {desired} needed"), replace(memory, raised=Raised(replicas, total, now))


def _down(signals: Signals, fleet: Fleet, memory: Memory, limits: Limits, now: float, enough: int) -> Decision:
    replicas, smaller = fleet.replicas, fleet.replicas - 1
    since = now - (memory.surplus_since or now)
    if since < limits.down_after_seconds or now - memory.changed_at < limits.down_every_seconds:
        return Decision(replicas, "settling", f"{enough} would do, for {since:.0f} s now")
    starved = memory.starved
    if starved is not None and now - starved.at < _REMEMBERED_SECONDS and starved.demand > 0:
        if smaller <= starved.replicas * (demand(signals) or 0.0) / starved.demand:
            return Decision(replicas, "steady", f"the learner starved with {starved.replicas} not long ago")
    if signals.in_flight_completions > smaller * (memory.rate or 0.0) * _DEADLINE_SECONDS:
        sentence = f"{smaller} could not answer {signals.in_flight_completions} completions in flight in time"
        return Decision(replicas, "in_flight", sentence)
    return Decision(smaller, "surplus", f"{enough} would do, for {since:.0f} s now")
