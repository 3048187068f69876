"""The law that says how many generators there should be: its properties, and days of the simulated line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.generator.scaling import Memory, Raised, Starved, decide, needed
from services.generator.scaling_values import Decision, Fleet, Limits, Signals
from tests.bench._line_simulation import HOUR, Line, World
from tests.bench.scaling import law

LIMITS = Limits(min_replicas=1, max_replicas=10)
NOW = 10_000.0
CALM = Signals(
    age_seconds=1.0,
    tasks_active=1,
    wait_ratio=0.0,
    step_seconds=8.0,
    batch_trajectories=256,
    samples_per_insert=1.0,
    trajectories_per_second=32.0,
    fresh_steps=1.0,
    stock_steps=1.0,
    staleness_versions=2.0,
    admission_capacity=100,
    in_flight_prompts=10,
    in_flight_completions=160,
)
STARVING = replace(CALM, wait_ratio=0.5)

counts = st.integers(0, 20)
figures = st.floats(0.0, 1_000.0)
signals = st.builds(
    Signals,
    age_seconds=st.floats(0.0, 59.0),
    tasks_active=st.integers(0, 3),
    wait_ratio=st.none() | st.floats(0.0, 1.0),
    step_seconds=st.none() | st.floats(0.01, 600.0),
    batch_trajectories=st.none() | st.integers(1, 4_096),
    samples_per_insert=st.floats(0.1, 16.0),
    trajectories_per_second=figures,
    fresh_steps=figures,
    stock_steps=figures,
    staleness_versions=st.none() | figures,
    admission_capacity=st.integers(-5, 500),
    in_flight_prompts=st.integers(0, 500),
    in_flight_completions=st.integers(0, 8_000),
)
fleets = st.tuples(counts, counts).map(lambda pair: Fleet(replicas=max(pair), ready=min(pair)))
memories = st.builds(
    Memory,
    fleet=st.none() | fleets,
    changed_at=st.floats(0.0, NOW),
    has_work=st.booleans(),
    rate=st.none() | st.floats(0.01, 100.0),
    surplus_since=st.none() | st.floats(0.0, NOW),
    starved=st.none() | st.builds(Starved, counts, figures, st.floats(0.0, NOW)),
    raised=st.none() | st.builds(Raised, st.integers(1, 10), figures, st.floats(0.0, NOW)),
)


def settled(replicas: int, **fields: Any) -> tuple[Fleet, Memory]:
    """A fleet that has been as it is for long, each bringing 8 trajectories a second."""
    fleet = Fleet(replicas=replicas, ready=replicas)
    return fleet, Memory(fleet=fleet, changed_at=0.0, has_work=True, **{"rate": 8.0} | fields)


def decision(seen: Signals | None, fleet: Fleet, memory: Memory, **options: Any) -> Decision:
    return decide(seen, fleet, memory, LIMITS, now=NOW, **options)[0]


@given(seen=signals, fleet=fleets, memory=memories)
def test_it_stays_within_its_limits_and_goes_to_nothing_only_without_a_task(
    seen: Signals, fleet: Fleet, memory: Memory
) -> None:
    found = decision(seen, fleet, memory)
    if seen.tasks_active:
        assert LIMITS.min_replicas <= found.desired <= LIMITS.max_replicas
    else:
        assert found.desired in (0, fleet.replicas)


@given(seen=signals, fleet=fleets, memory=memories)
def test_it_never_goes_up_while_some_are_pending_or_nothing_more_may_be_out(
    seen: Signals, fleet: Fleet, memory: Memory
) -> None:
    found = decision(seen, fleet, memory)
    is_hindered = fleet.ready < fleet.replicas or seen.admission_capacity <= 0
    if is_hindered and LIMITS.min_replicas <= fleet.replicas:
        assert found.desired <= fleet.replicas


@given(seen=signals, fleet=fleets, memory=memories)
def test_it_goes_down_by_one_and_only_where_the_rest_can_answer_what_is_in_flight(
    seen: Signals, fleet: Fleet, memory: Memory
) -> None:
    found, after = decide(seen, fleet, memory, LIMITS, now=NOW)
    if found.reason == "surplus":
        assert found.desired == fleet.replicas - 1
        assert seen.in_flight_completions <= found.desired * (after.rate or 0.0) * 60
        assert (needed(seen, after, LIMITS) or 99) <= found.desired
    elif found.desired < fleet.replicas:
        assert found.reason in ("no_task", "limits")
        assert found.reason == "limits" or seen.in_flight_prompts == 0


@given(fleet=fleets, memory=memories, age=st.none() | st.floats(61.0, 1e6), seen=signals)
def test_without_signals_or_with_old_ones_nothing_changes(
    fleet: Fleet, memory: Memory, age: float | None, seen: Signals
) -> None:
    found = decision(None if age is None else replace(seen, age_seconds=age), fleet, memory)
    assert found.desired == fleet.replicas
    assert found.reason == ("no_signals" if age is None else "old_signals")


@given(seen=st.none() | signals, fleet=fleets, memory=memories, wanted=counts)
def test_a_person_s_number_goes_before_everything_but_the_most(
    seen: Signals | None, fleet: Fleet, memory: Memory, wanted: int
) -> None:
    assert decision(seen, fleet, memory, override=wanted).desired == min(wanted, LIMITS.max_replicas)


@given(seen=signals, fleet=fleets, memory=memories)
def test_the_same_look_gives_the_same_decision(seen: Signals, fleet: Fleet, memory: Memory) -> None:
    assert decide(seen, fleet, memory, LIMITS, now=NOW) == decide(seen, fleet, memory, LIMITS, now=NOW)


@given(seen=signals, fleet=fleets, memory=memories, steps=st.integers(1, 40))
def test_a_fleet_whose_pods_never_become_ready_does_not_grow(
    seen: Signals, fleet: Fleet, memory: Memory, steps: int
) -> None:
    grown = 0
    for turn in range(steps):
        found, memory = decide(seen, fleet, memory, LIMITS, now=NOW + 10 * turn)
        grown += found.desired > fleet.replicas
        fleet = Fleet(replicas=found.desired, ready=min(fleet.ready, found.desired))
    assert grown <= 1 + (LIMITS.min_replicas > fleet.replicas)


def test_demand_over_rate_is_what_is_needed_by_hand() -> None:
    # 256 trajectories in 8 s is 32 a second; with 15% to spare 36.8, of 8 a second each: 4.6
    assert needed(CALM, Memory(rate=8.0), LIMITS) == 5
    assert needed(replace(CALM, samples_per_insert=4.0), Memory(rate=8.0), LIMITS) == 2
    assert needed(CALM, Memory(), LIMITS) is None
    assert needed(replace(CALM, step_seconds=None), Memory(rate=8.0), LIMITS) is None


def test_it_goes_to_what_demand_needs_before_the_stock_is_eaten() -> None:
    eats_more = replace(CALM, step_seconds=4.0, fresh_steps=0.0)
    assert decision(eats_more, *settled(5)) == Decision(10, "demand", "the learner waits 0% of the time; 10 needed")
    assert decision(replace(eats_more, stock_steps=1_000.0), *settled(5)).reason == "steady"


def test_a_learner_that_starves_gets_one_more_even_where_demand_is_met_on_paper() -> None:
    assert decision(STARVING, *settled(6)).desired == 7
    assert decision(STARVING, *settled(6)).reason == "starving"


def test_it_at_most_doubles_at_once() -> None:
    assert decision(replace(STARVING, step_seconds=0.1, trajectories_per_second=8.0), *settled(2)).desired == 4


def test_when_the_last_ones_brought_nothing_it_asks_for_no_more() -> None:
    fleet, memory = settled(6, raised=Raised(3, 32.0, NOW - 600))
    stuck = decision(STARVING, fleet, memory)
    assert (stuck.desired, stuck.reason) == (6, "no_gain")
    assert stuck.sentence.endswith("3 brought 32.00 trajectories/s, 6 bring 32.00")
    assert decision(replace(STARVING, trajectories_per_second=48.0), fleet, memory).desired == 7


def test_a_change_is_judged_only_after_it_has_settled() -> None:
    fleet, memory = settled(6)
    fresh = replace(memory, changed_at=NOW - 30)
    assert decision(STARVING, fleet, fresh).reason == "settling"


def test_surplus_must_last_before_one_goes() -> None:
    fleet, memory = settled(9)
    plenty = replace(CALM, trajectories_per_second=72.0)
    waiting, memory = decide(plenty, fleet, memory, LIMITS, now=NOW)
    assert (waiting.desired, waiting.reason) == (9, "settling")
    later, _ = decide(plenty, fleet, memory, LIMITS, now=NOW + LIMITS.down_after_seconds)
    assert (later.desired, later.reason) == (8, "surplus")
    interrupted, memory = decide(replace(plenty, wait_ratio=0.5), fleet, memory, LIMITS, now=NOW + 300)
    again, _ = decide(plenty, fleet, memory, LIMITS, now=NOW + LIMITS.down_after_seconds)
    assert (interrupted.desired, again.desired) == (10, 9)


def test_a_size_that_starved_the_learner_lately_is_not_tried_again_unless_it_eats_less() -> None:
    fleet, memory = settled(9, surplus_since=0.0, starved=Starved(8, 32.0, NOW - 1_200))
    assert decision(CALM, fleet, memory).desired == 9
    assert decision(replace(CALM, step_seconds=12.0), fleet, memory).desired == 8
    assert decision(CALM, fleet, replace(memory, starved=Starved(8, 32.0, NOW - 3_700))).desired == 8


def test_generators_that_were_kept_waiting_do_not_lower_what_one_is_held_to_bring() -> None:
    fleet, memory = settled(8)
    _, kept_waiting = decide(replace(CALM, fresh_steps=20.0), fleet, memory, LIMITS, now=NOW)
    assert kept_waiting.rate == 8.0
    _, busy = decide(CALM, fleet, memory, LIMITS, now=NOW)
    assert busy.rate == pytest.approx(8.0 + 0.3 * (4.0 - 8.0))


def test_without_a_task_all_go_after_a_while_but_not_before_what_is_in_flight_is_back() -> None:
    fleet, memory = settled(3)
    idle = replace(CALM, tasks_active=0, in_flight_prompts=0, in_flight_completions=0)
    assert decision(replace(idle, in_flight_prompts=1), fleet, memory).reason == "in_flight"
    waiting, memory = decide(idle, fleet, memory, LIMITS, now=NOW)
    assert (waiting.desired, waiting.reason) == (3, "settling")
    assert decide(idle, fleet, memory, LIMITS, now=NOW + LIMITS.zero_after_seconds)[0].desired == 0


def test_with_a_task_the_first_ones_start_at_once_and_as_many_as_are_known_to_be_needed() -> None:
    nothing = Fleet(replicas=0, ready=0)
    assert decision(CALM, nothing, Memory()).desired == 1
    assert decision(CALM, nothing, Memory(rate=8.0)).desired == 5


@pytest.mark.parametrize("seed", range(2))
def test_through_rushes_slow_starts_and_deaths_the_learner_is_fed_and_the_size_does_not_swing(seed: int) -> None:
    rush = ((0.0, 12.0), (1.5 * HOUR, 4.0), (3 * HOUR, 16.0))
    world = World(demand=rush, seconds=5 * HOUR, life_seconds=3 * HOUR)
    day = Line(world, law(world), replicas=2, seed=seed).run()
    assert day.reversals(world) == 0
    assert day.idle_share < 0.05  # the cold start alone is 2%
    assert day.gpu_seconds / HOUR < 40  # as many as the rush needs, all the time, would be 45
    assert len(day.changes) / 5 < 5


def test_a_steady_demand_gets_a_steady_size() -> None:
    world = World(demand=((0.0, 8.0),), seconds=6 * HOUR, life_seconds=1_000 * HOUR)
    day = Line(world, law(world), replicas=5, seed=7).run()
    assert [change for change in day.changes if change[0] > HOUR] == []
    assert day.idle_share < 0.02


def test_how_long_a_start_takes_is_learned_from_starts_and_not_from_a_moment_of_not_being_ready() -> None:
    fleet, memory = settled(2)
    looks = [(Fleet(replicas=2, ready=1), 0), (fleet, 10), (Fleet(replicas=3, ready=2), 20), (settled(3)[0], 110)]
    known = []
    for seen, seconds in looks:
        _, memory = decide(CALM, seen, memory, LIMITS, now=NOW + seconds)
        known.append(memory.start_seconds)
    assert known == [300.0, 300.0, 300.0, 90.0]
