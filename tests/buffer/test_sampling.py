"""The sampling law against exact probabilities, and planted bugs that the same tests must find."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.buffer.deck import Deck
from services.buffer.index import Index, rows_of
from services.buffer.picking import Floats, Picks, pick, pick_groups
from services.buffer.sampling import Decks, GroupDraw, Law, Sampler
from tests.buffer.laws import fits, plackett_luce

WEIGHTS: Final = (1.0, 2.0, 0.5, 4.0, 1.5, 3.0)
DRAWS: Final = 8_000


def ids(count: int) -> np.ndarray[Any, Any]:
    return np.arange(count, dtype=np.int64)


def ordered_triples(draw: Callable[[np.random.Generator, Floats], list[int]]) -> Counter[tuple[int, ...]]:
    rng = np.random.default_rng(7)
    log_weights = np.log(WEIGHTS)
    return Counter(tuple(draw(rng, log_weights)) for _ in range(DRAWS))


def by_the_law(rng: np.random.Generator, log_weights: Floats) -> list[int]:
    return [int(p) for p in pick(rng, log_weights, ids(len(log_weights)), 3).positions]


def planted_random_times_weight(rng: np.random.Generator, log_weights: Floats) -> list[int]:
    return [int(p) for p in np.argsort(-rng.random(len(log_weights)) * np.exp(log_weights))[:3]]


def planted_uniform_after_the_first(rng: np.random.Generator, log_weights: Floats) -> list[int]:
    first = int(rng.choice(len(log_weights), p=np.exp(log_weights) / np.exp(log_weights).sum()))
    others = [i for i in range(len(log_weights)) if i != first]
    return [first, *(int(i) for i in rng.permutation(others)[:2])]


def test_ordered_draws_follow_plackett_luce() -> None:
    assert fits(ordered_triples(by_the_law), plackett_luce(WEIGHTS, 3))


@pytest.mark.parametrize("bug", [planted_random_times_weight, planted_uniform_after_the_first])
def test_a_planted_bug_in_the_draw_is_found(bug: Callable[[np.random.Generator, Floats], list[int]]) -> None:
    assert not fits(ordered_triples(bug), plackett_luce(WEIGHTS, 3))


def test_the_recorded_log_probability_is_the_exact_one() -> None:
    rng = np.random.default_rng(1)
    exact = plackett_luce(WEIGHTS, 3)
    for _ in range(200):
        picks = pick(rng, np.log(WEIGHTS), ids(6), 3)
        order = tuple(int(p) for p in picks.positions)
        assert picks.draw_logprobs.sum() == pytest.approx(math.log(exact[order]), abs=1e-12)
        # Planted: weights that are not renormalised after each draw give another number.
        assert picks.marginal_logprobs.sum() != pytest.approx(math.log(exact[order]), abs=1e-3)


def test_the_marginal_log_probability_is_that_of_a_softmax() -> None:
    picks = pick(np.random.default_rng(2), np.log(WEIGHTS), ids(6), 6)
    expected = [math.log(WEIGHTS[p] / sum(WEIGHTS)) for p in picks.positions]
    assert picks.marginal_logprobs == pytest.approx(expected)
    assert picks.log_normalizer == pytest.approx(math.log(sum(WEIGHTS)))


def test_kappa_makes_the_weighted_sum_unbiased() -> None:
    rng = np.random.default_rng(3)
    values, log_weights = np.arange(6.0), np.log(WEIGHTS)
    estimates = []
    naive = []
    for _ in range(DRAWS):
        picks = pick(rng, log_weights, ids(6), 3)
        included = -np.expm1(-np.exp(log_weights[picks.positions] - picks.kappa))
        estimates.append(float((values[picks.positions] / 6 / included).sum()))
        naive.append(float(values[picks.positions].mean()))
    assert abs(z_score(estimates, 2.5)) < 5
    assert abs(z_score(naive, 2.5)) > 5


def z_score(samples: list[float], mean: float) -> float:
    return (float(np.mean(samples)) - mean) / (float(np.std(samples)) / math.sqrt(len(samples)))


def test_kappa_is_minus_infinity_when_everything_is_drawn() -> None:
    assert pick(np.random.default_rng(0), np.log(WEIGHTS), ids(6), 6).kappa == -math.inf


def test_fewer_than_k_are_all_drawn_once_and_then_again_by_softmax() -> None:
    rng = np.random.default_rng(4)
    weights = (1.0, 3.0)
    extra: Counter[int] = Counter()
    for _ in range(500):
        picks = pick(rng, np.log(weights), ids(2), 5)
        assert sorted(int(p) for p in picks.positions[:2]) == [0, 1]
        extra.update(int(p) for p in picks.positions[2:])
        assert picks.draw_logprobs[2:] == pytest.approx(np.log([weights[p] / 4 for p in picks.positions[2:]]))
    assert fits(extra, {0: 0.25, 1: 0.75})


def test_by_the_published_law_a_small_prompt_draws_everything_with_replacement() -> None:
    rng = np.random.default_rng(4)
    weights = np.log([1.0, 3.0])
    counts: Counter[int] = Counter()
    for _ in range(1_000):
        small, large = pick_groups(rng, [weights, np.log(WEIGHTS)], [ids(2), ids(6)], 3, all_independent=True)
        counts.update(int(p) for p in small.positions)
        assert small.draw_logprobs == pytest.approx(small.marginal_logprobs)
        assert len(set(large.positions.tolist())) == 3  # without replacement where there is enough
    assert fits(counts, {0: 0.25, 1: 0.75})


def test_groups_of_different_sizes_are_drawn_as_if_alone() -> None:
    rng = np.random.default_rng(5)
    orders: Counter[tuple[int, ...]] = Counter()
    for _ in range(2_000):
        picked = pick_groups(rng, [np.zeros(2), np.log(WEIGHTS), np.zeros(40)], [ids(2), ids(6), ids(40)], 2)
        orders[tuple(picked[1].positions.tolist())] += 1
        assert picked[1].log_normalizer == pytest.approx(math.log(sum(WEIGHTS)))
        assert (picked[0].kappa, len(set(picked[2].positions.tolist()))) == (-math.inf, 2)
    assert fits(orders, plackett_luce(WEIGHTS, 2))


@pytest.mark.parametrize("inverse_temperature", [100.0, 500.0, 1e6])
def test_a_high_inverse_temperature_draws_the_best_and_does_not_fail(inverse_temperature: float) -> None:
    rewards = np.arange(30, dtype=np.float64)  # the original raised "fewer non-zero entries in p than size" here
    picks = pick(np.random.default_rng(5), np.multiply(inverse_temperature, rewards), ids(30), 20)
    assert [int(p) for p in picks.positions] == list(range(29, 9, -1))
    assert np.isfinite(picks.draw_logprobs).all()
    assert (picks.draw_logprobs <= 1e-9).all()


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.integers(1, 50), st.integers(0, 2**32))
def test_a_draw_never_repeats_before_everything_was_drawn(rewards: list[float], count: int, seed: int) -> None:
    picks = pick(np.random.default_rng(seed), np.array(rewards), ids(len(rewards)), count)
    once = [int(p) for p in picks.positions[: min(count, len(rewards))]]
    assert len(set(once)) == len(once)
    assert len(picks.positions) == count
    assert all(0 <= p < len(rewards) for p in picks.positions)


def sampler(
    *, prompts: int = 12, groups: int = 4, trajectories: int = 4, m: float = 0.5, seed: int = 11, online: int = 12
) -> Sampler:
    """Prompts 0.. with six trajectories of version 0; the first `online` of them also four of version 1."""
    index = Index(capacity=100, fewest=4, max_staleness=8)
    index.activate(frozenset({1}))
    index.advance(1)
    for x in range(prompts):
        old = [(0, 100 * x + i, float(i)) for i in range(6)]
        new = [(1, 100 * x + 50 + i, float(i)) for i in range(4)]
        index.apply(x, 1, rows_of(old + (new if x < online else [])))
    law = Law(
        seed=seed,
        groups=groups,
        trajectories=trajectories,
        most_on_policy_probability=m,
        inverse_temperature=1.0,
    )
    return Sampler(index, Decks(Deck("online", seed), Deck("offline", seed)), law)


def seen(groups: tuple[GroupDraw, ...]) -> list[tuple[int, str, list[int]]]:
    return [(g.prompt_id, g.kind, g.rows["trajectory_id"].tolist()) for g in groups]


def test_state_and_batch_number_reproduce_a_draw() -> None:
    assert seen(sampler().draw(5)) == seen(sampler().draw(5))
    assert seen(sampler().draw(5)) != seen(sampler().draw(6))
    assert seen(sampler().draw(5)) != seen(sampler(seed=12).draw(5))


def test_the_kind_of_a_group_is_a_coin_with_probability_m() -> None:
    drawing = sampler(m=0.3)
    kinds: Counter[str] = Counter(g.kind for batch in range(800) for g in drawing.draw(batch))
    assert fits(kinds, {"online": 0.3, "offline": 0.7})


def test_an_online_group_holds_the_newest_version_only_and_is_uniform() -> None:
    drawing = sampler(m=1.0, trajectories=2)
    firsts: Counter[int] = Counter()
    for batch in range(1, 500):
        for group in drawing.draw(batch):
            assert set(group.rows["version"].tolist()) == {1}
            assert group.picks.draw_logprobs == pytest.approx(np.log([1 / 4, 1 / 3]))
            firsts[int(group.rows["trajectory_id"][0]) % 100 - 50] += 1
    assert fits(firsts, dict.fromkeys(range(4), 0.25))


def test_an_offline_group_prefers_reward_as_softmax() -> None:
    drawing = sampler(m=0.0, trajectories=1, online=0)
    rewards = Counter(int(g.rows["reward"][0]) for batch in range(1_000) for g in drawing.draw(batch))
    total = sum(math.exp(r) for r in range(6))
    assert fits(rewards, {r: math.exp(r) / total for r in range(6)})


def test_the_prompts_of_a_batch_are_distinct() -> None:
    drawing = sampler(prompts=6, groups=5, m=0.5)
    for batch in range(300):
        assert len({g.prompt_id for g in drawing.draw(batch)}) == 5


def test_fewer_ready_prompts_than_groups_come_again_and_evenly() -> None:
    drawing = sampler(prompts=3, groups=7, m=0.0)
    counts = Counter(g.prompt_id for g in drawing.draw(1))
    assert sorted(counts.values()) == [2, 2, 3]


def test_without_enough_online_prompts_a_group_falls_back_to_replay_and_says_so() -> None:
    drawing = sampler(online=1, groups=4, m=1.0)
    kinds = Counter(g.kind for g in drawing.draw(1))
    assert kinds == {"online": 1, "fallback": 3}
    drawing = sampler(online=0, groups=4, m=1.0)
    # Version 0 is then the newest there is, so everything is online.
    assert Counter(g.kind for g in drawing.draw(1)) == {"online": 4}


def test_a_batch_without_a_ready_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="no prompt is ready"):
        sampler(prompts=0).draw(1)


def test_a_group_says_how_many_different_trajectories_it_holds() -> None:
    full = sampler(trajectories=4, m=0.0).draw(1)[0]
    assert (full.available, full.distinct) == (10, 4)
    short = sampler(trajectories=20, m=0.0).draw(1)[0]
    assert (short.available, short.distinct, len(short.rows)) == (10, 10, 20)


def test_picks_hold_one_number_for_each_draw() -> None:
    picks: Picks = pick(np.random.default_rng(0), np.zeros(3), ids(3), 5)
    assert {len(picks.positions), len(picks.draw_logprobs), len(picks.marginal_logprobs)} == {5}
