"""The line as a simulation of events: generators that start slowly and die, the buffer's own limiter, a learner.

Pure: a day takes seconds, and the same seed gives the same day. What decides the number of generators is a function
from what the autoscaler would see to a number; everything else is the same for all of them.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

from services.buffer.limiter import Limits, Stock, blocked, feed_credits
from services.buffer.pacing import Turnaround
from services.buffer.signals import StepTime, wait_ratio
from services.generator.scaling_values import Fleet, Signals

HOUR: Final = 3_600.0
_FEED_SECONDS: Final = 5.0
_CONTROL_TURNS: Final = 2  # of the feed
_DEADLINE_SECONDS: Final = 60.0
_PROMPTS: Final = 2_000
_REVERSAL_SECONDS: Final = 900.0

#: From what the autoscaler sees, and the time, to a number of generators.
Policy = Callable[[Signals, Fleet, float], int]


@dataclass(frozen=True, kw_only=True)
class World:
    """A day. `demand` is from when on a step takes how long; None is no active task."""

    demand: tuple[tuple[float, float | None], ...]
    seconds: float = 24 * HOUR
    groups: int = 16  # in a batch, and trajectories in a group
    at_once: int = 32  # groups in one generator
    group_seconds: float = 60.0  # lognormal, median: the longest of its completions counts, so it varies little
    start_seconds: float = 240.0  # lognormal, median: schedule, pull, load
    life_seconds: float = 12 * HOUR  # exponential: preemption, hardware
    drain_seconds: float = 120.0
    samples_per_insert: float = 1.0
    max_staleness: int = 32
    max_replicas: int = 16

    def step_seconds(self, now: float) -> float | None:
        """How long a step takes now."""
        return next(seconds for start, seconds in reversed(self.demand) if start <= now)


@dataclass(eq=False)
class Generator:
    """A pod."""

    ready: bool = False
    leaving: bool = False
    running: set[int] = field(default_factory=set)


@dataclass
class Outcome:
    """What a day cost and brought."""

    active_seconds: float = 0.0
    busy_seconds: float = 0.0
    gpu_seconds: float = 0.0
    staleness: list[float] = field(default_factory=list)
    changes: list[tuple[float, int]] = field(default_factory=list)  # when, and by how many

    @property
    def idle_share(self) -> float:
        """Of the time with a task, the share that the learner did not compute."""
        return 1 - self.busy_seconds / self.active_seconds

    def reversals(self, world: World) -> int:
        """Changes against the one before within a quarter of an hour, with no change of demand between: oscillation."""
        return sum(
            (a > 0) != (b > 0)
            and t - s < _REVERSAL_SECONDS
            and not any(s - _REVERSAL_SECONDS < at <= t for at, _ in world.demand)
            for (s, a), (t, b) in itertools.pairwise(self.changes)
        )


class Line:
    """The state of a day, and its events."""

    def __init__(self, world: World, policy: Policy, *, replicas: int, seed: int) -> None:
        self.world, self._policy, self._rng = world, policy, Random(seed)
        self._limits = Limits(
            groups=world.groups,
            min_size=500,
            samples_per_insert=world.samples_per_insert,
            max_staleness=world.max_staleness,
        )
        self._pods: list[Generator] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = itertools.count()
        self._now = 0.0
        self._queue: deque[int] = deque()
        self._sent: dict[int, tuple[float, int]] = {}  # order: when sent, version when it is sampled
        self._turnaround = Turnaround(_DEADLINE_SECONDS)
        self._worked: dict[int, float] = {}  # seconds of sampling, by order
        self._undrawn: deque[int] = deque()  # versions, oldest first
        self._inserts = self._samples = self._version = 0
        self._arrivals: deque[float] = deque()
        self._steps: deque[StepTime] = deque(maxlen=64)
        self._stepping = False
        self._ages: deque[float] = deque(maxlen=32)
        self.outcome = Outcome()
        self._scale(replicas, counts=False)
        self._at(0.0, lambda: self._feed(0))

    def run(self) -> Outcome:
        """Live the day."""
        while self._events and self._events[0][0] < self.world.seconds:
            at, _, event = heapq.heappop(self._events)
            self.outcome.gpu_seconds += (at - self._now) * len(self._pods)
            if self.world.step_seconds(self._now) is not None:
                self.outcome.active_seconds += at - self._now
            self._now = at
            event()
            self._take()
            self._learn()
        return self.outcome

    def _at(self, delay: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + delay, next(self._ids), event))

    def _lognormal(self, median: float, sigma: float) -> float:
        return median * math.exp(self._rng.gauss(0, sigma))

    def _fleet(self) -> Fleet:
        staying = [pod for pod in self._pods if not pod.leaving]
        return Fleet(replicas=len(staying), ready=sum(pod.ready for pod in staying))

    def _scale(self, replicas: int, *, counts: bool = True) -> None:
        staying = [pod for pod in self._pods if not pod.leaving]
        change = replicas - len(staying)
        if change and counts:
            self.outcome.changes.append((self._now, change))
        for _ in range(change):
            self._start()
        for pod in sorted(staying, key=lambda p: (p.ready, len(p.running)))[: max(0, -change)]:
            pod.leaving = True
            self._at(self.world.drain_seconds, lambda pod=pod: self._end(pod))  # type: ignore[misc]

    def _start(self) -> None:
        pod = Generator()
        self._pods.append(pod)
        self._at(self._lognormal(self.world.start_seconds, 0.4), lambda: self._become_ready(pod))
        self._at(self._rng.expovariate(1 / self.world.life_seconds), lambda: self._die(pod))

    def _become_ready(self, pod: Generator) -> None:
        pod.ready = True

    def _die(self, pod: Generator) -> None:
        replaced = pod in self._pods and not pod.leaving
        self._end(pod)
        if replaced:
            self._start()

    def _end(self, pod: Generator) -> None:
        if pod in self._pods:
            self._pods.remove(pod)
            for order in pod.running:
                sent_at, _ = self._sent[order]
                late = max(0.0, sent_at + self._turnaround.deadline_seconds() - self._now)
                self._at(late, lambda order=order: self._queue.append(order))  # type: ignore[misc]
            pod.running.clear()

    def _feed(self, turn: int) -> None:
        self._at(_FEED_SECONDS, lambda: self._feed(turn + 1))
        if self.world.step_seconds(self._now) is not None:
            window = self._turnaround.window(self._now, 4 * self.world.groups)
            for _ in range(min(self._credits(), window - len(self._sent))):
                order = next(self._ids)
                self._sent[order] = (self._now, self._version)
                self._queue.append(order)
        if turn % _CONTROL_TURNS == 0:
            self._scale(min(self._policy(self._signals(), self._fleet(), self._now), self.world.max_replicas))

    def _take(self) -> None:
        for pod in self._pods:
            if pod.leaving and not pod.running:
                self._at(0.0, lambda pod=pod: self._end(pod))  # type: ignore[misc]
            while self._queue and pod.ready and not pod.leaving and len(pod.running) < self.world.at_once:
                order = self._queue.popleft()
                pod.running.add(order)
                seconds = self._lognormal(self.world.group_seconds, 0.2)
                self._sent[order] = (self._sent[order][0], self._version)
                self._worked[order] = seconds
                self._at(seconds, lambda pod=pod, order=order: self._answer(pod, order))  # type: ignore[misc]

    def _answer(self, pod: Generator, order: int) -> None:
        if order not in pod.running:
            return  # it died before
        pod.running.remove(order)
        sent_at, version = self._sent.pop(order)
        self._turnaround.answered(self._now, self._now - sent_at, self._worked.pop(order))
        if version >= self._version - self.world.max_staleness:
            self._inserts += self.world.groups
            self._arrivals.append(self._now)
            self._undrawn.append(version)

    def _learn(self) -> None:
        seconds = self.world.step_seconds(self._now)
        if self._stepping or seconds is None or self._blocked() is not None:
            return
        self._stepping = True
        self._samples += self.world.groups**2
        self._ages.append(sum(self._drawn()) / self.world.groups)
        self.outcome.staleness.append(self._ages[-1])
        seconds = self._lognormal(seconds, 0.05)
        self.outcome.busy_seconds += seconds
        self._at(seconds, lambda: self._stepped(seconds))

    def _drawn(self) -> Iterator[float]:
        """Ages of the groups of a batch: half are the newest, the rest wait longest or are drawn again."""
        for position in range(self.world.groups):
            if not self._undrawn:
                yield self._rng.uniform(0, min(self._version, self.world.max_staleness))
            else:
                yield self._version - (self._undrawn.pop() if position % 2 else self._undrawn.popleft())

    def _stepped(self, seconds: float) -> None:
        self._stepping = False
        self._steps.append(StepTime(self._now, seconds))
        self._version += 1
        while self._undrawn and self._undrawn[0] < self._version - self.world.max_staleness:
            self._undrawn.popleft()

    def _stock(self) -> Stock:
        ready = min(self._inserts // self.world.groups, _PROMPTS)
        return Stock(
            inserts=self._inserts,
            samples=self._samples,
            ready=ready,
            stocked=ready,
            trainable=_PROMPTS,
            batches_in_flight=0,
        )

    def _blocked(self) -> str | None:
        return blocked(self._limits, self._stock())

    def _credits(self) -> int:
        return feed_credits(
            self._limits,
            blocked(self._limits, self._stock()),
            steps_per_version=1,
            in_flight_groups=len(self._sent),
            undrawn_groups=len(self._undrawn),
        )

    def _signals(self) -> Signals:
        while self._arrivals and self._arrivals[0] < self._now - 60:
            self._arrivals.popleft()
        starved = self._blocked() is not None and not self._stepping
        waited = wait_ratio(list(self._steps), self._now)
        steps = [step.seconds for step in self._steps]
        return Signals(
            age_seconds=0.0,
            tasks_active=int(self.world.step_seconds(self._now) is not None),
            wait_ratio=1.0 if waited is None and starved else waited,
            step_seconds=sum(steps[-8:]) / len(steps[-8:]) if steps else None,
            batch_trajectories=self.world.groups**2,
            samples_per_insert=self.world.samples_per_insert,
            trajectories_per_second=len(self._arrivals) * self.world.groups / 60,
            fresh_steps=len(self._undrawn) / self.world.groups,
            stock_steps=max(0.0, self.world.samples_per_insert * self._inserts - self._samples) / self.world.groups**2,
            staleness_versions=sum(self._ages) / len(self._ages) if self._ages else None,
            admission_capacity=self._credits() + len(self._sent),
            in_flight_prompts=len(self._sent),
            in_flight_completions=len(self._sent) * self.world.groups,
        )
