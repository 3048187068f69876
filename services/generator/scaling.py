"""How many generators there should be: the law, pure. Signals and time come in, a decision with its reason goes out.

Prompts are an endless supply, so their backlog says nothing; what counts is whether the learner waits. Demand (what
the learner eats) over rate (what one generator brings) says how many are needed; waiting corrects it. It never goes
up when more could not help, goes down slowly and by one, and holds when it cannot see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from services.generator.scaling_values import Decision, Fleet, Limits, Reason, Signals

_DEADLINE_SECONDS: Final = 60.0  # what is in flight longer than this, the buffer may send again (TBA_REISSUE_SECONDS)
_MARGIN: Final = 0.25  # one fewer must still have this much to spare, or demand that trembles would drive us
_LEAST_GAIN: Final = 0.25  # of the rate that was to be expected from those added last
_SMOOTHING: Final = 0.3
_STOCKED_STEPS: Final = 2.0  # with more than this undrawn, generators may be kept waiting
_TREMBLE: Final = 1.1  # then a rate is higher only when it is seen higher by this
_START_SECONDS: Final = 300.0  # of a generator, before one was seen to start
_REMEMBERED_SECONDS: Final = 3_600.0  # a size that starved the learner is not tried again within this


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
    pending_since: float | None = None
    start_seconds: float = _START_SECONDS  # from asking for a generator until it samples


@dataclass(frozen=True, slots=True)
class _Look:
    """Everything that one decision is made from, but for the memory."""

    signals: Signals
    fleet: Fleet
    limits: Limits
    now: float

    @property
    def replicas(self) -> int:
        return self.fleet.replicas

    @property
    def wait(self) -> str:
        return f"the learner waits {self.signals.wait_ratio or 0:.0%} of the time"

    def keep(self, reason: Reason, sentence: str) -> Decision:
        return Decision(self.fleet.replicas, reason, sentence)

    def is_settled(self, memory: Memory) -> bool:
        waited = self.now - memory.changed_at >= self.limits.settle_seconds
        return waited and self.fleet.ready >= self.fleet.replicas


def decide(
    signals: Signals | None, fleet: Fleet, memory: Memory, limits: Limits, *, now: float, override: int | None = None
) -> tuple[Decision, Memory]:
    """Return what to do, and what to remember. `now` is any clock in seconds; `override` is a person's number."""
    memory = _looked(memory, fleet, signals, now)
    if override is not None:
        chosen = min(override, limits.max_replicas)
        return Decision(chosen, "override", f"a person asked for {chosen}"), memory
    if signals is None:
        return Decision(fleet.replicas, "no_signals", "there are no signals: nothing is changed"), memory
    look = _Look(signals, fleet, limits, now)
    if signals.age_seconds > limits.max_age_seconds:
        silent = f"the buffer has been silent for {signals.age_seconds:.0f} s: nothing is changed"
        return look.keep("old_signals", silent), memory
    memory = _measured(look, memory)
    if signals.tasks_active == 0:
        return _without_task(look, memory), memory
    if fleet.replicas == 0:
        first = min(max(needed(signals, memory, limits) or 0, limits.min_replicas, 1), limits.max_replicas)
        return Decision(first, "start", f"{signals.tasks_active} active tasks, no generator"), memory
    clamped = min(max(fleet.replicas, limits.min_replicas), limits.max_replicas)
    if clamped != fleet.replicas:
        bounds = f"between {limits.min_replicas} and {limits.max_replicas}"
        return Decision(clamped, "limits", f"{fleet.replicas} is not {bounds}"), memory
    return _with_task(look, memory)


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


def _looked(memory: Memory, fleet: Fleet, signals: Signals | None, now: float) -> Memory:
    """Notice a change of the fleet, and the first and last moment with work."""
    has_work = memory.has_work if signals is None else signals.tasks_active > 0 or signals.in_flight_prompts > 0
    if has_work != memory.has_work:
        memory = replace(memory, has_work=has_work, changed_at=now, surplus_since=None)
    if fleet == memory.fleet:
        return memory
    since = memory.pending_since
    if fleet.ready >= fleet.replicas:
        if since is not None:
            memory = replace(memory, pending_since=None, start_seconds=now - since)
    elif since is None and memory.fleet is not None and fleet.replicas > memory.fleet.replicas:
        memory = replace(memory, pending_since=now)  # one that only was not ready for a moment does not start
    return replace(memory, fleet=fleet, changed_at=now)


def _measured(look: _Look, memory: Memory) -> Memory:
    """Learn what one generator brings. One that was kept waiting shows only that it brings no less."""
    signals, ready = look.signals, look.fleet.ready
    settled = ready > 0 and look.now - memory.changed_at >= look.limits.settle_seconds
    if not settled or signals.tasks_active == 0 or signals.trajectories_per_second <= 0:
        return memory
    seen = signals.trajectories_per_second / ready
    if memory.rate is None:
        return replace(memory, rate=seen)
    if signals.fresh_steps > _STOCKED_STEPS and seen < memory.rate * _TREMBLE:
        return memory
    return replace(memory, rate=memory.rate + _SMOOTHING * (seen - memory.rate))


def _without_task(look: _Look, memory: Memory) -> Decision:
    if look.signals.in_flight_prompts > 0:
        return look.keep("in_flight", f"no active task, {look.signals.in_flight_prompts} prompts in flight")
    idle = look.now - memory.changed_at
    if look.replicas == 0 or idle >= look.limits.zero_after_seconds:
        return Decision(0, "no_task", "no task is active")
    return look.keep("settling", f"no task is active since {idle:.0f} s")


def _with_task(look: _Look, memory: Memory) -> tuple[Decision, Memory]:
    signals, limits = look.signals, look.limits
    wait = signals.wait_ratio or 0.0
    wanted = needed(signals, memory, limits) or 0
    starving = wait > limits.starving_ratio
    if starving and look.is_settled(memory) and signals.admission_capacity > 0:
        memory = replace(memory, starved=Starved(look.replicas, demand(signals) or 0.0, look.now))
    # Before the stock is eaten up, those that are asked for now must be there.
    stock_seconds = signals.stock_steps * (signals.step_seconds or 0.0)
    if starving or (wanted > look.replicas and stock_seconds < 2 * memory.start_seconds):
        memory = replace(memory, surplus_since=None)
        return _hindered(look, memory, wanted) or _up(look, memory, wanted)
    enough = needed(signals, memory, limits, _MARGIN)
    if enough is None or not limits.min_replicas < look.replicas > enough or wait > limits.calm_ratio:
        sentence = f"{look.wait}; {wanted or 'an unknown number'} needed"
        return look.keep("steady", sentence), replace(memory, surplus_since=None)
    if memory.surplus_since is None:
        memory = replace(memory, surplus_since=look.now)
    return _down(look, memory, enough), memory


def _hindered(look: _Look, memory: Memory, wanted: int) -> tuple[Decision, Memory] | None:
    """Why there cannot be more now, although there should; None if there can."""
    replicas, settled = look.replicas, look.is_settled(memory)
    if look.fleet.ready < replicas:
        why: tuple[Reason, str] = ("pending", f"{replicas - look.fleet.ready} are not ready yet")
    elif look.signals.admission_capacity <= 0:
        why = ("admission_limited", "no more prompts may be out")
    elif not settled and wanted <= replicas:
        why = ("settling", f"{replicas} since {look.now - memory.changed_at:.0f} s")
    elif replicas >= look.limits.max_replicas:
        why = ("limits", f"{max(wanted, replicas + 1)} needed, this is the most")
    elif settled and memory.raised is not None and not _gained(look, memory.raised):
        before, rate = memory.raised, look.signals.trajectories_per_second
        why = ("no_gain", f"{before.replicas} brought {before.rate:.2f} trajectories/s, {replicas} bring {rate:.2f}")
    else:
        return None
    return look.keep(why[0], f"{look.wait}; {why[1]}"), memory


def _gained(look: _Look, before: Raised) -> bool:
    """Whether those that were added last brought something, or that is too long ago to say."""
    more = look.replicas - before.replicas
    if more <= 0 or look.now - before.at >= _REMEMBERED_SECONDS:
        return True
    return look.signals.trajectories_per_second > before.rate * (1 + _LEAST_GAIN * more / before.replicas)


def _up(look: _Look, memory: Memory, wanted: int) -> tuple[Decision, Memory]:
    replicas = look.replicas
    # At most twice as many at once: a rate that was measured too low must not ask for the whole cluster.
    desired = min(max(wanted, replicas + 1), max(2 * replicas, replicas + 2), look.limits.max_replicas)
    reason: Reason = "demand" if wanted > replicas else "starving"
    memory = replace(memory, raised=Raised(replicas, look.signals.trajectories_per_second, look.now))
    return Decision(desired, reason, f"{look.wait}; {desired} needed"), memory


def _down(look: _Look, memory: Memory, enough: int) -> Decision:
    signals, smaller = look.signals, look.replicas - 1
    since = look.now - (look.now if memory.surplus_since is None else memory.surplus_since)
    surplus = f"{enough} would do, for {since:.0f} s now"
    too_soon = look.now - memory.changed_at < look.limits.down_every_seconds
    if since < look.limits.down_after_seconds or too_soon:
        return look.keep("settling", surplus)
    starved = memory.starved
    if starved is not None and look.now - starved.at < _REMEMBERED_SECONDS:
        grown = (demand(signals) or 0.0) / starved.demand if starved.demand else 1.0
        if smaller <= starved.replicas * grown:
            return look.keep("steady", f"the learner starved with {starved.replicas} not long ago")
    if signals.in_flight_completions > smaller * (memory.rate or 0.0) * _DEADLINE_SECONDS:
        late = f"{smaller} could not answer {signals.in_flight_completions} completions in flight in time"
        return look.keep("in_flight", late)
    return Decision(smaller, "surplus", surplus)
