"""The tests of the sampling law, for whatever draws by it: each check raises AssertionError where the law is broken.

The world: the learner is at version 10, nothing older than version 6 may be drawn, and a prompt holds seven. Each
prompt has six trajectories that may be drawn, of which three are of the newest version there is, and two that may
not, whose rewards are the best.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any, Final

import numpy as np

from services.buffer.sampling import GroupDraw
from tests.buffer.laws import fits, plackett_luce

LEARNER_VERSION: Final = 10
VERSIONS: Final = (5, 5, 6, 7, 8, 9, 9, 9)
WEIGHTS: Final = (60.0, 50.0, 1.0, 2.0, 0.5, 4.0, 1.5, 3.0)
REWARDS: Final = tuple(math.log(weight) for weight in WEIGHTS)
STALE: Final = 2  # the first two of each prompt
ONLINE: Final = (5, 6, 7)
MOST_ON_POLICY: Final = 0.4

#: The settings of the world: many groups at once, so that few batches make many draws.
WIDE: Final[dict[str, Any]] = {
    "groups_per_batch": 64,
    "trajectories_per_group": 3,
    "min_trajectories_per_group": 3,
    "max_staleness_versions": 4,
    "capacity_per_prompt": 7,
    "most_on_policy_probability": MOST_ON_POLICY,
    "inverse_temperature": 1.0,
    "min_size": 0,
    "samples_per_insert": 1e9,
}
WIDE_PROMPTS: Final = 80
WIDE_BATCHES: Final = 60
#: Few prompts, each with other rewards and versions, so that few batches tell their weights apart.
PRIORITY: Final = WIDE | {"groups_per_batch": 2, "most_on_policy_probability": 0.0, "min_trajectories_per_group": 2}
#: By prompt, versions and rewards. The first of the last prompt is too old to be drawn, but counts for its spread.
PRIORITY_PROMPTS: Final = (
    ((9, 9, 9), (0.0, 4.0, 2.0)),
    ((7, 7, 8), (1.0, 1.0, 1.0)),
    ((6, 6, 6), (0.0, 2.0, 2.0)),
    ((5, 6, 7), (3.0, 2.5, 3.5)),
)
PRIORITY_BATCHES: Final = 300
#: The weights of the prompts: deviations in units of the largest, and halved with each version behind version 9.
PRIORITY_WEIGHTS: Final[dict[str, tuple[float, ...]]] = {
    "spread": (1.0, 0.1, 0.1 + 0.9 / math.sqrt(3), 0.1 + 0.9 / 4),
    "recency": (1.0, 0.1 + 0.9 / 2, 0.1 + 0.9 / 8, 0.1 + 0.9 / 4),
}
#: As many prompts as groups, all replayed: each batch is one epoch of the deck.
EPOCHS: Final = WIDE | {"groups_per_batch": 12, "most_on_policy_probability": 0.0}
EPOCH_PROMPTS: Final = 12
EPOCH_BATCHES: Final = 100


@dataclass(frozen=True, slots=True)
class Seen:
    """A group as whoever drew it told of it; `items` number the trajectories of the prompt from its first."""

    prompt_id: int
    kind: str
    items: tuple[int, ...]
    draw_logprobs: tuple[float, ...]
    marginal_logprobs: tuple[float, ...]
    kappa: float
    prompt_logprob: float | None


Batch = Sequence[Seen]


def seen(groups: Iterable[GroupDraw], first_of: dict[int, int]) -> list[Seen]:
    """What draws in this process tell."""
    return [
        Seen(
            group.prompt_id,
            group.kind,
            tuple(int(i) - first_of[group.prompt_id] for i in group.rows["trajectory_id"]),
            tuple(group.picks.draw_logprobs.tolist()),
            tuple(group.picks.marginal_logprobs.tolist()),
            group.picks.kappa,
            group.prompt_logprob,
        )
        for group in groups
    ]


def replayed(batches: Sequence[Batch]) -> list[Seen]:
    """The groups that were drawn by reward."""
    return [group for batch in batches for group in batch if group.kind == "offline"]


def on_policy(batches: Sequence[Batch]) -> list[Seen]:
    """The groups of the newest version."""
    return [group for batch in batches for group in batch if group.kind == "online"]


def check_nothing_stale_is_drawn(batches: Sequence[Batch]) -> None:
    assert all(item >= STALE for batch in batches for group in batch for item in group.items)


def check_replay_follows_plackett_luce(batches: Sequence[Batch]) -> None:
    counts = Counter(tuple(item - STALE for item in group.items) for group in replayed(batches))
    assert counts.total() > 2_000
    assert fits(counts, plackett_luce(WEIGHTS[STALE:], 3))


def check_on_policy_draws_are_uniform(batches: Sequence[Batch]) -> None:
    counts = Counter(group.items for group in on_policy(batches))
    assert fits(counts, dict.fromkeys(permutations(ONLINE), 1 / 6))


def check_kinds_are_a_coin(batches: Sequence[Batch]) -> None:
    counts = Counter(group.kind for batch in batches for group in batch)
    assert fits(counts, {"online": MOST_ON_POLICY, "offline": 1 - MOST_ON_POLICY})


def check_log_probabilities_are_exact(batches: Sequence[Batch]) -> None:
    exact = plackett_luce(WEIGHTS[STALE:], 3)
    for group in replayed(batches):
        order = tuple(item - STALE for item in group.items)
        assert math.isclose(sum(group.draw_logprobs), math.log(exact[order]), abs_tol=1e-6)
        single = [math.log(WEIGHTS[item] / sum(WEIGHTS[STALE:])) for item in group.items]
        assert np.allclose(group.marginal_logprobs, single, atol=1e-6)
    for group in on_policy(batches):
        assert np.allclose(group.draw_logprobs, np.log([1 / 3, 1 / 2, 1]), atol=1e-9)


def check_kappa_makes_sums_unbiased(batches: Sequence[Batch]) -> None:
    """With q = 1 - exp(-exp(w - kappa)), the sum of f/q is unbiased for the sum of f over all that may be drawn."""
    estimates = []
    for group in replayed(batches):
        weights = np.array([REWARDS[item] for item in group.items])
        included = -np.expm1(-np.exp(weights - group.kappa))
        estimates.append(float((np.array(group.items) / included).sum()))
    truth = sum(range(STALE, len(WEIGHTS)))
    z = (np.mean(estimates) - truth) / (np.std(estimates) / math.sqrt(len(estimates)))
    assert abs(z) < 5
    assert all(group.kappa == -math.inf for group in on_policy(batches))  # everything was drawn


def check_prompts_of_a_batch_are_distinct(batches: Sequence[Batch]) -> None:
    assert all(len({group.prompt_id for group in batch}) == len(batch) for batch in batches)


def check_prompts_are_drawn_evenly(epochs: Sequence[Batch]) -> None:
    counts = Counter(dict.fromkeys({group.prompt_id for batch in epochs for group in batch}, 0))
    assert len(counts) == EPOCH_PROMPTS
    for batch in epochs:
        for group in batch:
            counts[group.prompt_id] += 1
        assert max(counts.values()) - min(counts.values()) <= 1


def check_the_order_of_an_epoch_is_uniform(epochs: Sequence[Batch]) -> None:
    prompts = sorted({group.prompt_id for group in epochs[0]})
    for position in (0, 5, 11):
        counts = Counter(batch[position].prompt_id for batch in epochs)
        assert fits(counts, dict.fromkeys(prompts, 1 / len(prompts)))
    follows = Counter((a.prompt_id, b.prompt_id) for batch in epochs for a, b in pairwise(batch))
    assert max(follows.values()) < len(epochs) / 4  # nobody always follows the same


def check_prompts_follow_their_priority(batches: Sequence[Batch], weights: Sequence[float]) -> None:
    prompts = sorted({group.prompt_id for batch in batches for group in batch})
    assert len(prompts) == len(weights)
    counts = Counter(tuple(prompts.index(group.prompt_id) for group in batch) for batch in batches)
    assert fits(counts, plackett_luce(weights, len(batches[0])))


def check_prompt_log_probabilities_are_exact(batches: Sequence[Batch], weights: Sequence[float]) -> None:
    """Of a prompt that was drawn by priority, given those before it in the batch, however they came into it."""
    weight_of = dict(zip(sorted({group.prompt_id for batch in batches for group in batch}), weights, strict=True))
    for batch in batches:
        left = dict(weight_of)
        for group in batch:
            weight, total = left[group.prompt_id], sum(left.values())
            if group.kind == "online":
                assert group.prompt_logprob is None
            else:
                assert group.prompt_logprob is not None
                assert math.isclose(group.prompt_logprob, math.log(weight / total), abs_tol=1e-5)
            del left[group.prompt_id]


WIDE_CHECKS: Final = (
    check_nothing_stale_is_drawn,
    check_replay_follows_plackett_luce,
    check_on_policy_draws_are_uniform,
    check_kinds_are_a_coin,
    check_log_probabilities_are_exact,
    check_kappa_makes_sums_unbiased,
    check_prompts_of_a_batch_are_distinct,
)
PRIORITY_CHECKS: Final = (check_prompts_follow_their_priority, check_prompt_log_probabilities_are_exact)
EPOCH_CHECKS: Final = (check_prompts_are_drawn_evenly, check_the_order_of_an_epoch_is_uniform)
