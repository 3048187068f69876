"""The two brakes: each holds when it must, says why, and never both for ever."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.buffer.limiter import INGEST_ROWS, REASONS, Limits, Reason, Stock, blocked, feed_credits, holds_ingest
from services.buffer.pacing import Backlog

LIMITS = Limits(groups=4, min_size=100, samples_per_insert=2.0, max_staleness=3)
FULL = Stock(inserts=1_000, samples=0, ready=10, stocked=10, trainable=50, batches_in_flight=0)


def test_nothing_holds_back_a_full_buffer() -> None:
    assert blocked(LIMITS, FULL) is None


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("in_flight", {"batches_in_flight": 2}),
        ("min_size", {"inserts": 99}),
        ("not_ready", {"ready": 3, "stocked": 3}),
        ("stale", {"ready": 3, "stocked": 4}),
        ("ratio", {"samples": 2_001}),
    ],
)
def test_each_reason_is_named(reason: Reason, change: dict[str, Any]) -> None:
    assert blocked(LIMITS, replace(FULL, **change)) == reason


def test_a_run_with_fewer_prompts_than_groups_is_not_waited_for() -> None:
    assert blocked(LIMITS, replace(FULL, trainable=2, ready=2)) is None
    assert blocked(LIMITS, replace(FULL, trainable=0, ready=0, stocked=0)) == "not_ready"


def test_the_first_batch_never_waits_on_the_ratio() -> None:
    mean = replace(LIMITS, min_size=1, samples_per_insert=0.001)
    assert blocked(mean, replace(FULL, inserts=1, samples=0)) is None


def test_samples_stay_within_one_batch_of_the_ratio() -> None:
    samples, batch = 0, 4 * 16
    while blocked(LIMITS, replace(FULL, samples=samples)) is None:
        samples += batch
    assert 2 * FULL.inserts < samples <= 2 * FULL.inserts + batch


def test_a_batch_that_needs_the_newest_version_waits_for_it() -> None:
    strict = replace(LIMITS, needs_online=True)
    assert blocked(strict, FULL) == "not_ready"
    assert blocked(strict, replace(FULL, online=1)) is None
    assert blocked(LIMITS, FULL) is None


BAND = replace(LIMITS, least_samples_per_insert=1.0, trajectories=5)


def held(inserts: int, samples: int, reason: Reason | None = None, *, holds: bool = False) -> bool:
    return holds_ingest(BAND, reason, inserts=inserts, samples=samples, holds=holds)


def test_ingest_waits_above_the_slack_and_goes_on_below_half_of_it() -> None:
    slack = 4 * 5 + INGEST_ROWS
    assert BAND.slack == slack
    assert not held(1_000 + slack, 1_000)
    assert held(1_001 + slack, 1_000)
    assert held(1_001 + slack // 2, 1_000, holds=True)
    assert not held(1_000 + slack // 2, 1_000, holds=True)


@pytest.mark.parametrize("reason", ["min_size", "stale", "not_ready", "ratio"])
def test_ingest_never_waits_while_a_batch_waits_for_data(reason: Reason) -> None:
    assert held(1_000_000, 0, "in_flight")
    assert not held(1_000_000, 0, reason, holds=True)


def test_without_a_least_ingest_never_waits() -> None:
    assert not holds_ingest(LIMITS, None, inserts=10**9, samples=0, holds=True)


@pytest.mark.parametrize("least", [-1.0, 2.5])
def test_an_empty_band_is_refused(least: float) -> None:
    with pytest.raises(ValueError, match=r"expected 0 <= least <= most samples per insert, got .* and 2"):
        replace(LIMITS, least_samples_per_insert=least)


@given(
    st.floats(0.01, 10),
    st.floats(0, 1),
    st.integers(0, 10**6),
    st.integers(0, 10**7),
    st.booleans(),
    st.integers(0, 99),
)
def test_ingest_and_sampling_never_wait_for_one_another(
    most: float, share: float, inserts: int, samples: int, holds: bool, groups: int
) -> None:
    limits = replace(LIMITS, samples_per_insert=most, least_samples_per_insert=most * share, groups=groups or 1)
    stock = replace(FULL, inserts=inserts, samples=samples, ready=100, stocked=100, trainable=100)
    reason = blocked(limits, stock)
    waits = holds_ingest(limits, reason, inserts=inserts, samples=samples, holds=holds)
    assert reason is None or not waits


def test_the_feed_orders_what_the_learner_can_take_in_before_it_is_stale() -> None:
    assert feed_credits(LIMITS, None, steps_per_version=5, in_flight_groups=0, undrawn_groups=0) == 3 * 5 * 4
    assert feed_credits(LIMITS, "in_flight", steps_per_version=5, in_flight_groups=20, undrawn_groups=30) == 10
    assert feed_credits(LIMITS, None, steps_per_version=5, in_flight_groups=30, undrawn_groups=40) == 0


@given(st.sampled_from(REASONS), st.integers(1, 9), st.integers(0, 10_000))
def test_sampling_that_wants_data_always_lets_the_feed_order_some(reason: Reason, steps: int, undrawn: int) -> None:
    room = feed_credits(LIMITS, reason, steps_per_version=steps, in_flight_groups=0, undrawn_groups=undrawn)
    assert room > 0 or reason == "in_flight"


@dataclass
class Line:
    """A line in miniature: the real brakes, generators that answer, a learner that trains one batch a turn."""

    limits: Limits
    trajectories: int
    prompts: int
    completions: int
    answers_needed: int  # until a prompt has enough different trajectories
    steps_per_version: int
    inserts: int = 0
    samples: int = 0
    batches: int = 0
    untrained: int = 0
    versions: dict[int, list[int]] = field(default_factory=dict)  # of the answers, by prompt
    in_flight: deque[int] = field(default_factory=deque)
    wire: deque[int] = field(default_factory=deque)  # answers that wait to be taken in
    holds: bool = False
    backlog: Backlog = field(default_factory=Backlog)

    @property
    def version(self) -> int:
        return (self.batches - self.untrained) // self.steps_per_version

    def ready(self, oldest: int) -> set[int]:
        return {
            x
            for x, versions in self.versions.items()
            if len(versions) >= self.answers_needed and versions[-self.answers_needed] >= oldest
        }

    def turn(self, *, answered: int, lost: bool, trains: bool) -> None:
        oldest = self.version - self.limits.max_staleness
        ready = self.ready(oldest)
        reason = blocked(
            self.limits,
            Stock(
                inserts=self.inserts,
                samples=self.samples,
                ready=len(ready),
                stocked=len(self.ready(-1)),
                trainable=self.prompts,
                batches_in_flight=self.untrained,
            ),
        )
        if reason is None:
            self.draw(ready)
        self.holds = holds_ingest(self.limits, reason, inserts=self.inserts, samples=self.samples, holds=self.holds)
        while self.wire and not self.holds:
            self.take_in(self.wire.popleft())
        self.backlog.forget(oldest)
        room = feed_credits(
            self.limits,
            reason,
            steps_per_version=self.steps_per_version,
            in_flight_groups=len(self.in_flight) + len(self.wire),
            undrawn_groups=self.backlog.count(ready),
        )
        free = [x for x in range(self.prompts) if x not in self.in_flight and x not in self.wire]
        self.in_flight.extend(free[:room])
        for _ in range(min(answered, len(self.in_flight))):
            self.answer(self.in_flight.popleft(), lost=lost)
        if trains and self.untrained:
            self.untrained -= 1

    def draw(self, ready: set[int]) -> None:
        self.batches += 1
        self.untrained += 1
        self.samples += self.limits.groups * self.trajectories
        for turn in range(self.limits.groups):
            self.backlog.drawn(sorted(ready)[(self.batches + turn) % len(ready)])

    def answer(self, prompt: int, *, lost: bool) -> None:
        if not lost:
            self.wire.append(prompt)

    def take_in(self, prompt: int) -> None:
        self.inserts += self.completions
        self.versions.setdefault(prompt, []).append(self.version)
        self.backlog.arrived(prompt, self.version)


@given(
    groups=st.integers(1, 8),
    min_size=st.integers(0, 60),
    samples_per_insert=st.floats(0.05, 10),
    least_share=st.sampled_from([0.0, 0.5, 1.0]),
    max_staleness=st.integers(1, 3),
    prompts=st.integers(1, 12),
    completions=st.integers(1, 8),
    answers_needed=st.integers(1, 3),
    steps_per_version=st.integers(1, 4),
    weather=st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=30),
)
def test_the_line_never_stands_still_for_good(
    groups: int,
    min_size: int,
    samples_per_insert: float,
    least_share: float,
    max_staleness: int,
    prompts: int,
    completions: int,
    answers_needed: int,
    steps_per_version: int,
    weather: list[tuple[int, bool, bool]],
) -> None:
    limits = Limits(
        groups=groups,
        min_size=min_size,
        samples_per_insert=samples_per_insert,
        least_samples_per_insert=samples_per_insert * least_share,
        max_staleness=max_staleness,
    )
    line = Line(limits, 4, prompts, completions, answers_needed, steps_per_version)
    for answered, lost, trains in weather:  # anything may happen
        line.turn(answered=answered, lost=lost, trains=trains)
    before, turns = line.batches, 0
    while line.batches == before and turns < 4_000:  # then everybody works again, if slowly
        line.turn(answered=1, lost=False, trains=True)
        turns += 1
    assert line.batches > before
