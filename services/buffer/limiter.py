"""When a batch may be drawn, what comes may be taken in, and prompts may be out: the brakes of the line.

Sampling waits for data; ingest and the feed wait for the learner. None may wait for another that waits for it: while
a batch is held back for want of data, nothing holds back ingest, and what lies undrawn does not hold back the feed
(docs/sampling.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from tba_common.topics import MAX_BATCHES_IN_FLIGHT

#: Why no batch can be drawn now. All but `in_flight`, which waits for the learner, want more trajectories.
#: `index_ahead` is found by the draw itself: whoever draws from the tables sees no prompt of those in the index.
Reason = Literal["in_flight", "min_size", "stale", "not_ready", "ratio", "index_ahead"]
REASONS: Final[tuple[Reason, ...]] = ("in_flight", "min_size", "stale", "not_ready", "ratio", "index_ahead")

#: Trajectories that one ingest transaction may bring at most, beyond the last record's own.
INGEST_ROWS: Final = 500


class Band(NamedTuple):
    """How often a trajectory is to be drawn on average: below `least` ingest waits, above `most` sampling does."""

    least: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a deployment chose.

    Raises:
        ValueError: the band is empty: sampling and ingest would wait for one another.
    """

    groups: int  # G
    min_size: int
    samples_per_insert: float  # the most of the band
    max_staleness: int  # D, in versions
    least_samples_per_insert: float = 0.0  # 0: ingest never waits
    trajectories: int = 0  # K
    needs_online: bool = False  # on_empty=block: no batch while no prompt has answers of the newest version

    def __post_init__(self) -> None:
        if not 0 <= self.least_samples_per_insert <= self.samples_per_insert:
            raise ValueError(
                "expected 0 <= least <= most samples per insert,"
                f" got {self.least_samples_per_insert:g} and {self.samples_per_insert:g}"
            )

    @property
    def slack(self) -> float:
        """Draws that the learner may owe before ingest waits: a batch, and what one transaction may bring."""
        return self.groups * self.trajectories + self.least_samples_per_insert * INGEST_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """What there is.

    `inserts` counts every trajectory that came back and was not too old, also one that only refreshed a stored one:
    a policy that has become sure of its answers says nothing new, and must not starve the learner by it.
    """

    inserts: int
    samples: int
    ready: int  # prompts that can be drawn
    online: int = 0  # prompts that can be drawn with what the newest version said
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
    if limits.needs_online and stock.online == 0:
        return "not_ready"
    if stock.samples > limits.samples_per_insert * stock.inserts:
        return "ratio"
    return None


def holds_ingest(limits: Limits, reason: Reason | None, *, inserts: int, samples: int, holds: bool) -> bool:
    """Return whether what comes must wait on the wire, given whether it does now (`holds`).

    The learner owes `least * inserts - samples` draws. Above the slack ingest waits, until half of that is paid. It
    never waits while a batch is held back for want of data: no draw would ever pay.
    """
    owed = limits.least_samples_per_insert * inserts - samples
    if limits.least_samples_per_insert == 0 or (reason is not None and reason != "in_flight"):
        return False
    return owed > (limits.slack / 2 if holds else limits.slack)


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
