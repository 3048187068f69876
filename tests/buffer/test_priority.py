"""Priority across prompts: the same exact law as within a prompt, off unless asked for."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.buffer.deck import Deck
from services.buffer.index import PROMPT, Index, Prompts, rows_of
from services.buffer.priority import Priority, PriorityOrder, prompt_weights
from services.buffer.sampling import Decks, Law, Sampler
from tests.buffer.laws import fits, plackett_luce

SPREADS = (0.5, 0.0, 0.25, 0.1)


def prompts(spreads: tuple[float, ...] = SPREADS, newest: tuple[int, ...] = (3, 3, 1, 0)) -> Prompts:
    known = np.zeros(len(spreads), dtype=PROMPT)
    known["prompt_id"], known["spread"], known["newest"] = np.arange(len(spreads)) + 1, spreads, newest
    return known


def test_the_weight_by_spread_is_relative_to_the_largest_and_never_below_a_tenth() -> None:
    weights = prompt_weights(prompts(), "spread", newest=3, max_staleness=8)
    assert weights == pytest.approx([1.0, 0.1, 0.55, 0.28], abs=1e-6)
    alike = prompt_weights(prompts((0.0, 0.0), (0, 0)), "spread", newest=0, max_staleness=8)
    assert alike[0] == alike[1] > 0


def test_the_weight_by_recency_halves_each_quarter_of_the_staleness_limit() -> None:
    weights = prompt_weights(prompts(), "recency", newest=3, max_staleness=8)
    assert weights == pytest.approx([1.0, 1.0, 0.1 + 0.9 / 2, 0.1 + 0.9 * 2**-1.5])


def orders(count: int) -> list[list[tuple[int, float]]]:
    known = prompts()
    weights = prompt_weights(known, "spread", newest=3, max_staleness=8)
    found = []
    for batch in range(count):
        order, taken = PriorityOrder(known, weights, batch, 8), set[int]()
        drawn = []
        while (chosen := order.next(taken)) is not None:
            drawn.append(chosen)
            taken.add(chosen[0])
        found.append(drawn)
    return found


def test_prompts_follow_plackett_luce_of_their_weights() -> None:
    counts = Counter(tuple(x - 1 for x, _ in drawn) for drawn in orders(6_000))
    weights = [1.0, 0.1, 0.55, 0.28]
    assert fits(counts, plackett_luce(weights, 4))
    planted = Counter({order: counts[order[::-1]] for order in counts})  # the least first
    assert not fits(planted, plackett_luce(weights, 4))


def test_the_recorded_log_probability_of_the_prompts_is_the_exact_one() -> None:
    exact = plackett_luce([1.0, 0.1, 0.55, 0.28], 4)
    for drawn in orders(50):
        order = tuple(x - 1 for x, _ in drawn)
        assert sum(logprob for _, logprob in drawn) == pytest.approx(math.log(exact[order]), abs=1e-5)


@given(st.integers(0, 2**64 - 1), st.integers(1, 60), st.integers(1, 60))
def test_the_first_of_many_do_not_depend_on_how_many_are_asked_for(key: int, count: int, most: int) -> None:
    known = prompts(tuple(np.linspace(0, 1, count)), tuple([0] * count))
    weights = prompt_weights(known, "spread", newest=0, max_staleness=1)
    whole, part = (PriorityOrder(known, weights, key, n) for n in (count, most))
    assert whole.next(()) == part.next(())
    shuffled = np.random.default_rng(0).permutation(count)
    again = PriorityOrder(known[shuffled], weights[shuffled], key, count)
    first, second = whole.next(()), again.next(())
    assert first is not None
    assert second is not None
    assert first[0] == second[0]


def sampler(priority: Priority, **changes: Any) -> Sampler:
    """Six prompts whose rewards differ more and more, each with a newest version of its own."""
    index = Index(capacity=100, fewest=4, max_staleness=8)
    index.activate(frozenset({1}))
    index.advance(6)
    for x in range(6):
        index.apply(x, 1, rows_of([(x, 10 * x + i, x * (i % 2)) for i in range(4)]))
    numbers: dict[str, Any] = {
        "seed": 3,
        "groups": 2,
        "trajectories": 4,
        "most_on_policy_probability": 0.0,
        "inverse_temperature": 0.0,
        "prompt_priority": priority,
    }
    return Sampler(index, Decks(Deck("online", 3), Deck("offline", 3)), Law(**numbers | changes))


@pytest.mark.parametrize("priority", ["spread", "recency"])
def test_a_batch_prefers_what_its_priority_says(priority: Priority) -> None:
    drawing = sampler(priority)
    counts = Counter(group.prompt_id for batch in range(500) for group in drawing.draw(batch))
    assert counts[5] > 2 * counts[1]
    assert set(counts) == set(range(6))  # nobody is starved
    assert all(len({g.prompt_id for g in drawing.draw(batch)}) == 2 for batch in range(50))


def test_without_priority_prompts_are_dealt_evenly_and_carry_no_log_probability() -> None:
    drawing = sampler("none")
    groups = [group for batch in range(30) for group in drawing.draw(batch)]
    assert set(Counter(group.prompt_id for group in groups).values()) == {10}
    assert {group.prompt_logprob for group in groups} == {None}


def test_an_on_policy_group_is_dealt_from_its_deck_whatever_the_priority() -> None:
    drawing = sampler("spread", most_on_policy_probability=1.0, groups=3)
    kinds = Counter((g.kind, g.prompt_logprob is None) for batch in range(20) for g in drawing.draw(batch))
    assert kinds == {("online", True): 20, ("fallback", False): 40}


def test_fewer_ready_prompts_than_groups_come_again() -> None:
    counts = Counter(group.prompt_id for group in sampler("spread", groups=12).draw(1))
    assert counts == dict.fromkeys(range(6), 2)
