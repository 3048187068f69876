"""When a batch may be drawn and how many prompts may be out: the two brakes of the line, without a deadlock.

Sampling waits for data; the feed waits for the learner. Each is let go when the other could wait for it for ever:
while a batch is held back for want of data, what lies undrawn does not hold back the feed (research/buffer.md 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

#: Why no batch can be drawn now. All but `in_flight`, which waits for the learner, want more trajectories.
Reason = Literal["in_flight", "min_size", "stale", "not_ready", "ratio"]
REASONS: Final[tuple[Reason, ...]] = ("in_flight", "min_size", "stale", "not_ready", "ratio")

#: Batches sent to the learner and not yet trained: one in its hands, one to start on at once.
MAX_BATCHES_IN_FLIGHT: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a deployment chose."""

    groups: int  # G
    min_size: int
    samples_per_insert: float
    max_staleness: int  # D, in versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """What there is.

    `inserts` counts every trajectory that came back and was not too old, also one that only refreshed a stored one:
    a policy that has become sure of its answers says nothing new, and must not starve the learner by it.
    """

    inserts: int
    samples: int
    ready: int  # prompts that can be drawn
    stocked: int  # prompts that could be drawn if nothing grew stale
    trainable: int  # prompts of active tasks: a run of fewer than G makes batches of those it has
    batches_in_flight: int


def blocked(limits: Limits, stock: Stock) -> Reason | None:
    """Return why no batch can be drawn, or None when one can.

    One batch more than `samples_per_insert` allows may be drawn, so that the first never waits on the ratio.
    """
    needed = max(1, min(limits.groups, stock.trainable))
    if stock.batches_in_flight >= MAX_BATCHES_IN_FLIGHT:
        return "in_flight"
    if stock.inserts < limits.min_size:
        return "min_size"
    if stock.ready < needed:
        return "stale" if stock.stocked >= needed else "not_ready"
    if stock.samples > limits.samples_per_insert * stock.inserts:
        return "ratio"
    return None


def feed_credits(
    limits: Limits, reason: Reason | None, *, steps_per_version: int, in_flight_groups: int, undrawn_groups: int
) -> int:
    """Return how many more groups may be ordered from the generators.

    The learner takes in `D * steps_per_version * G` groups before a group made now would be too old. What is in
    flight and what lies undrawn comes before it. While sampling wants data, only what is in flight counts.
    """
    absorbed = limits.max_staleness * steps_per_version * limits.groups
    wants_data = reason is not None and reason != "in_flight"
    waiting = in_flight_groups if wants_data else in_flight_groups + undrawn_groups
    return max(0, absorbed - waiting)
