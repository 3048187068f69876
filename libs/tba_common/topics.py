"""The Kafka topics, declared once as data. `python -m tba_common.topics` creates what is missing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_DAY_MS: Final = 24 * 3600 * 1000


@dataclass(frozen=True)
class Topic:
    """`partitions` bounds how many processes can share the work of a topic."""

    name: str
    partitions: int
    retention_ms: int = _DAY_MS
    compact: bool = False
    max_message_bytes: int = 4 << 20


def rollouts(scorer: str) -> str:
    """The topic a scorer reads."""
    return f"tba.rollouts.{scorer}"


PROMPTS: Final = Topic("tba.prompts", partitions=24)
TRAJECTORIES: Final = Topic("tba.trajectories", partitions=4, retention_ms=3 * _DAY_MS)
BATCHES: Final = Topic("tba.batches", partitions=1)  # one partition: batches are trained in order
STEPS: Final = Topic("tba.steps", partitions=1, retention_ms=3 * _DAY_MS)
WEIGHTS: Final = Topic("tba.weights", partitions=1, compact=True)
DEAD_LETTERS: Final = Topic("tba.dead_letters", partitions=1, retention_ms=14 * _DAY_MS)

_OF_EVERY_RUN: Final = (PROMPTS, TRAJECTORIES, BATCHES, STEPS, WEIGHTS, DEAD_LETTERS)


def topics_for(scorers: Iterable[str]) -> tuple[Topic, ...]:
    """Every topic of a deployment with these scorers."""
    return (*_OF_EVERY_RUN, *(Topic(rollouts(scorer), partitions=12) for scorer in scorers))


def main() -> None:
    """Create every topic that does not exist yet, on the brokers that the environment names."""
    from tba_common.kafka import create_topics
    from tba_common.settings import ServiceSettings

    settings = ServiceSettings.from_environment()
    for name in create_topics(settings.kafka_servers, topics_for(settings.scorers)):
        print(f"created {name}")  # noqa: T201


if __name__ == "__main__":
    main()
