"""One law, all who draw by it: the same suite on the index, on SQL and over the wire of each, and on planted bugs."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
import pytest

from services.buffer import batches as recording
from services.buffer import deck, picking, priority, sampling, sql_sampler
from services.buffer.migrations import migrate
from services.buffer.settings import BufferSettings
from tba_cli.local import postgres
from tests.buffer import law_suite as suite
from tests.buffer.law_suite import Batch
from tests.buffer.law_world import Content, Draw, by_index, by_sql, by_sql_wire, by_wire, fill
from tests.buffer.world import World

pytestmark = pytest.mark.integration

DRAWS: Final = {"index": by_index, "sql": by_sql, "wire": by_wire, "sql_wire": by_sql_wire}
Make = Callable[[World, BufferSettings, dict[int, int]], Draw]


@dataclass(frozen=True)
class Drawn:
    """What one of them drew."""

    wide: list[Batch]
    epochs: list[Batch]


def drawn(
    postgres_url: str, make: Make, numbers: dict[str, Any], *, prompts: int | Sequence[Content], batches: int
) -> list[Batch]:
    """Draw batches from a world of its own; its prompts are alike where only their number is given."""
    contents = [(suite.VERSIONS, suite.REWARDS)] * prompts if isinstance(prompts, int) else prompts
    url = postgres.create_database(postgres_url, f"law_{uuid.uuid4().hex}")
    migrate(url)
    with closing(World(url)) as world:
        draw = make(world, world.settings(**numbers), fill(world, contents))
        return [draw(batch_id) for batch_id in range(1, batches + 1)]


def wide(postgres_url: str, make: Make) -> list[Batch]:
    return drawn(postgres_url, make, suite.WIDE, prompts=suite.WIDE_PROMPTS, batches=suite.WIDE_BATCHES)


def epochs(postgres_url: str, make: Make) -> list[Batch]:
    return drawn(postgres_url, make, suite.EPOCHS, prompts=suite.EPOCH_PROMPTS, batches=suite.EPOCH_BATCHES)


def by_priority(postgres_url: str, make: Make, value: str, batches: int, **changes: Any) -> list[Batch]:
    numbers = suite.PRIORITY | {"prompt_priority": value} | changes
    return drawn(postgres_url, make, numbers, prompts=suite.PRIORITY_PROMPTS, batches=batches)


@pytest.fixture(scope="module", params=sorted(DRAWS))
def by(request: pytest.FixtureRequest, postgres_url: str) -> Drawn:
    make = DRAWS[request.param]
    return Drawn(wide(postgres_url, make), epochs(postgres_url, make))


@pytest.mark.parametrize("check", suite.WIDE_CHECKS)
def test_the_law_holds(by: Drawn, check: Callable[[list[Batch]], None]) -> None:
    check(by.wide)


@pytest.mark.parametrize("check", suite.EPOCH_CHECKS)
def test_the_law_of_the_deck_holds(by: Drawn, check: Callable[[list[Batch]], None]) -> None:
    check(by.epochs)


@pytest.mark.parametrize("value", sorted(suite.PRIORITY_WEIGHTS))
@pytest.mark.parametrize("name", ["index", "sql"])
def test_the_law_of_priority_holds(postgres_url: str, name: str, value: str) -> None:
    found = by_priority(postgres_url, DRAWS[name], value, suite.PRIORITY_BATCHES)
    for check in suite.PRIORITY_CHECKS:
        check(found, suite.PRIORITY_WEIGHTS[value])


@pytest.mark.parametrize("value", sorted(suite.PRIORITY_WEIGHTS))
@pytest.mark.parametrize("name", sorted(DRAWS))
def test_priority_leaves_out_what_the_deck_put_into_the_batch(postgres_url: str, name: str, value: str) -> None:
    changes = {"groups_per_batch": 3, "most_on_policy_probability": 0.5, "recency_versions": 3}
    found = by_priority(postgres_url, DRAWS[name], value, 30, **changes)
    assert {group.kind for batch in found for group in batch} >= {"online", "offline"}
    suite.check_prompts_of_a_batch_are_distinct(found)
    suite.check_prompt_log_probabilities_are_exact(found, suite.PRIORITY_WEIGHTS[value])


@pytest.mark.parametrize("name", sorted(DRAWS))
def test_state_and_batch_number_reproduce_a_batch(postgres_url: str, name: str) -> None:
    twice = [drawn(postgres_url, DRAWS[name], suite.WIDE, prompts=suite.WIDE_PROMPTS, batches=2) for _ in range(2)]
    assert twice[0] == twice[1]
    assert twice[0][0] != twice[0][1]


def broken(found: list[Batch], check: Callable[[list[Batch]], None]) -> None:
    """A check that a planted bug must not pass."""
    with pytest.raises(AssertionError):
        check(found)


def test_random_times_weight_is_found_in_the_index(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(rng: np.random.Generator, weights: Any, ids: Any, count: int, **kinds: Any) -> list[picking.Picks]:
        """The keys of a well-known mistake, in place of w + Gumbel."""
        order = [np.argsort(-rng.random(len(w)) * np.exp(w))[:count] for w in weights]
        right = picking.pick_groups(rng, weights, ids, count, **kinds)
        return [replace(picks, positions=positions) for picks, positions in zip(right, order, strict=True)]

    monkeypatch.setattr(sampling, "pick_groups", planted)
    broken(wide(postgres_url, by_index), suite.check_replay_follows_plackett_luce)


def test_random_times_weight_is_found_in_sql(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gumbel = "beta * reward - ln(-ln("
    assert gumbel in sql_sampler._PICKS
    monkeypatch.setattr(sql_sampler, "_PICKS", sql_sampler._PICKS.replace(gumbel, "exp(beta * reward) * (("))
    broken(wide(postgres_url, by_sql), suite.check_replay_follows_plackett_luce)


@pytest.mark.parametrize("make", [by_index, by_wire])
def test_weights_that_are_not_renormalised_are_found(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    def planted(*arguments: Any, **kinds: Any) -> list[picking.Picks]:
        right = picking.pick_groups(*arguments, **kinds)
        return [replace(picks, draw_logprobs=picks.marginal_logprobs) for picks in right]

    monkeypatch.setattr(sampling, "pick_groups", planted)
    broken(wide(postgres_url, make), suite.check_log_probabilities_are_exact)


@pytest.mark.parametrize("make", DRAWS.values())
def test_a_staleness_cut_off_by_one_is_found(postgres_url: str, make: Make) -> None:
    numbers = suite.WIDE | {"max_staleness_versions": 5}
    found = drawn(postgres_url, make, numbers, prompts=suite.WIDE_PROMPTS, batches=3)
    broken(found, suite.check_nothing_stale_is_drawn)


def test_a_kappa_that_is_the_smallest_drawn_key_is_found(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_sampler, "_PICKS", sql_sampler._PICKS.replace("place <= :count + 1", "place <= :count + 2"))
    right = sql_sampler.SqlSampler._group

    def planted(self: sql_sampler.SqlSampler, rng: Any, prompt: Any, found: list[Any]) -> Any:
        group = right(self, rng, prompt, found)
        if group.available <= 3:
            return group
        return replace(group, picks=replace(group.picks, kappa=found[-1].key))

    monkeypatch.setattr(sql_sampler.SqlSampler, "_group", planted)
    broken(wide(postgres_url, by_sql), suite.check_kappa_makes_sums_unbiased)


def test_a_deck_with_one_order_for_all_epochs_is_found(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(self: deck.Deck, prompt_id: int) -> tuple[int, int, int]:
        return self.count(prompt_id), hash(prompt_id), prompt_id

    monkeypatch.setattr(deck.Deck, "_entry", planted)
    broken(epochs(postgres_url, by_index), suite.check_the_order_of_an_epoch_is_uniform)


def test_prompts_drawn_with_replacement_are_found(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_save_decks", lambda *_: None)
    numbers = suite.EPOCHS | {"groups_per_batch": 5}
    found = drawn(postgres_url, by_sql, numbers, prompts=suite.EPOCH_PROMPTS, batches=10)
    broken(found, suite.check_prompts_are_drawn_evenly)


#: Mistakes in the weights of prompts.
WRONG_WEIGHTS: Final = {
    "spread": ("stddev_pop(reward)", "avg(reward)"),
    "recency": ("-4.0 * greatest(behind, 0)", "-1.0 * greatest(behind, 0)"),
}


@pytest.mark.parametrize("value", sorted(WRONG_WEIGHTS))
def test_wrong_weights_of_prompts_are_found_in_sql(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    right, wrong = WRONG_WEIGHTS[value]
    assert right in sql_sampler._IN_ORDER
    monkeypatch.setattr(sql_sampler, "_IN_ORDER", sql_sampler._IN_ORDER.replace(right, wrong))
    found = by_priority(postgres_url, by_sql, value, 30)
    broken(found, partial(suite.check_prompt_log_probabilities_are_exact, weights=suite.PRIORITY_WEIGHTS[value]))


def test_random_times_weight_of_prompts_is_found_in_sql(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gumbel = "ln(weight) - ln(-ln("
    assert gumbel in sql_sampler._IN_ORDER
    monkeypatch.setattr(sql_sampler, "_IN_ORDER", sql_sampler._IN_ORDER.replace(gumbel, "weight * (("))
    found = by_priority(postgres_url, by_sql, "spread", suite.PRIORITY_BATCHES)
    broken(found, partial(suite.check_prompts_follow_their_priority, weights=suite.PRIORITY_WEIGHTS["spread"]))


def test_a_halving_too_slow_is_found_in_the_index(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priority, "_HALF_LIVES", 2)
    found = by_priority(postgres_url, by_index, "recency", suite.PRIORITY_BATCHES)
    for check in suite.PRIORITY_CHECKS:
        broken(found, partial(check, weights=suite.PRIORITY_WEIGHTS["recency"]))
