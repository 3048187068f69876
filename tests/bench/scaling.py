"""A day of the line under fixed sizes, scaling by lag, and our law: how long the learner idles and what it costs.

    python -m tests.bench.scaling

Demand changes, generators start slowly and die. `best_fixed` is what the law's own GPU-hours buy as a fixed size,
rounded up in its favour. The last line is one JSON object.
"""

from __future__ import annotations

import json
import math
from collections import deque
from typing import Final

from rich.console import Console
from rich.table import Table

from services.generator.scaling import Memory, decide
from services.generator.scaling_values import Fleet, Limits, Signals
from tests.bench._line_simulation import HOUR, Line, Outcome, Policy, World

SEEDS: Final = range(2)
#: Seconds a step takes, over the day: long answers and short ones, an hour without a task, two rushes.
DAY: Final = World(
    demand=(
        (0.0, 12.0),
        (3 * HOUR, 3.0),
        (6 * HOUR, 8.0),
        (9 * HOUR, None),
        (10 * HOUR, 8.0),
        (14 * HOUR, 4.0),
        (17 * HOUR, 20.0),
        (21 * HOUR, 6.0),
        (23 * HOUR, 32.0),
    )
)


def fixed(size: int) -> Policy:
    """Always the same."""
    return lambda signals, fleet, now: size


def lag(world: World) -> Policy:
    """KEDA's Kafka scaler under an HPA: a generator for every `at_once` prompts that are not committed.

    The HPA's defaults: no change within 10%, and downwards the highest of the last five minutes.
    """
    recent: deque[tuple[float, int]] = deque()

    def policy(signals: Signals, fleet: Fleet, now: float) -> int:
        wanted = min(math.ceil(signals.in_flight_prompts / world.at_once), world.max_replicas)
        recent.append((now, wanted))
        while recent[0][0] < now - 300:
            recent.popleft()
        if fleet.replicas and abs(wanted / fleet.replicas - 1) <= 0.1:
            return fleet.replicas
        return max(wanted, min(fleet.replicas, max(size for _, size in recent)))

    return policy


def law(world: World) -> Policy:
    """Ours, with its defaults and never fewer than three while there is a task."""
    limits = Limits(min_replicas=3, max_replicas=world.max_replicas)
    memory = Memory()

    def policy(signals: Signals, fleet: Fleet, now: float) -> int:
        nonlocal memory
        decision, memory = decide(signals, fleet, memory, limits, now=now)
        return decision.desired

    return policy


class Average:
    """Several days of one policy."""

    def __init__(self, world: World, days: list[Outcome]) -> None:
        self.idle_share = sum(day.idle_share for day in days) / len(days)
        self.gpu_hours = sum(day.gpu_seconds for day in days) / len(days) / HOUR
        self.staleness = sum(sum(day.staleness) / len(day.staleness) for day in days) / len(days)
        self.changes_per_hour = sum(len(day.changes) for day in days) / len(days) / (world.seconds / HOUR)
        self.reversals = sum(day.reversals(world) for day in days)


def days(world: World, name: str, size: int = 0) -> Average:
    """Live some days under the policy of a name; a fixed one starts at its size."""

    def policy() -> Policy:
        return {"law": law, "lag": lag}[name](world) if name != "fixed" else fixed(size)

    return Average(world, [Line(world, policy(), replicas=size, seed=seed).run() for seed in SEEDS])


def main() -> None:
    """Print the table and the JSON line."""
    found = {f"fixed {size}": days(DAY, "fixed", size) for size in (1, 4, 16)}
    found["lag"], found["law"] = days(DAY, "lag"), days(DAY, "law")
    budget = math.ceil(found["law"].gpu_hours / (DAY.seconds / HOUR))
    best = found[f"fixed {budget}"] = days(DAY, "fixed", budget)
    table = Table("generators", "learner idle", "staleness", "GPU-hours", "changes/h", "reversals", box=None)
    for name, day in sorted(found.items(), key=lambda item: item[1].gpu_hours):
        figures = (
            f"{day.idle_share:.2%}",
            f"{day.staleness:.2f}",
            f"{day.gpu_hours:.0f}",
            f"{day.changes_per_hour:.2f}",
        )
        table.add_row(f"{name}{' (the same budget)' if day is best else ''}", *figures, str(day.reversals))
    Console().print(table)
    shares = {"law": found["law"], "lag": found["lag"], "best_fixed": best}
    result = {f"idle_share_{name}": round(day.idle_share, 4) for name, day in shares.items()}
    result |= {f"gpu_hours_{name}": round(day.gpu_hours, 1) for name, day in shares.items()}
    print(json.dumps(result | {"decisions_per_hour": round(found["law"].changes_per_hour, 2)}))


if __name__ == "__main__":
    main()
