"""The Kafka topics, declared once as data. `python -m tba_common.topics` creates what is missing, or waits for it."""

from __future__ import annotations

import argparse
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


def retries(scorer: str) -> str:
    """The topic a scorer reads late: rollouts it had no score for, and may have one later."""
    return f"tba.retries.{scorer}"


PROMPTS: Final = Topic("tba.prompts", partitions=24)
TRAJECTORIES: Final = Topic("tba.trajectories", partitions=4, retention_ms=3 * _DAY_MS)
BATCHES: Final = Topic("tba.batches", partitions=1)  # one partition: batches are trained in order
STEPS: Final = Topic("tba.steps", partitions=1, retention_ms=3 * _DAY_MS)
WEIGHTS: Final = Topic("tba.weights", partitions=1, compact=True)
DEAD_LETTERS: Final = Topic("tba.dead_letters", partitions=1, retention_ms=14 * _DAY_MS)

#: Batches sent to the learner whose reports the buffer has not heard: one in its hands, one to start on at once.
MAX_BATCHES_IN_FLIGHT: Final = 2

_OF_EVERY_RUN: Final = (PROMPTS, TRAJECTORIES, BATCHES, STEPS, WEIGHTS, DEAD_LETTERS)


def topics_for(scorers: Iterable[str]) -> tuple[Topic, ...]:
    """Every topic of a deployment with these scorers."""
    names = (name(scorer) for scorer in scorers for name in (rollouts, retries))
    return (*_OF_EVERY_RUN, *(Topic(name, partitions=12) for name in names))


def main() -> None:
    """Create every topic that does not exist yet, on the brokers that the environment names."""
    parser = argparse.ArgumentParser(prog="python -m tba_common.topics", description=main.__doc__)
    parser.add_argument("--wait", action="store_true", help="create none: wait until somebody has")
    wait = parser.parse_args().wait
    from tba_common.kafka import create_topics, wait_for_topics
    from tba_common.lifecycle import configure_logging, end_on_sigterm
    from tba_common.settings import ServiceSettings

    end_on_sigterm()
    settings = ServiceSettings.from_environment()
    configure_logging(settings.log_format)
    topics = topics_for(settings.scorers)
    if wait:
        wait_for_topics(settings.brokers, topics)
        return
    for name in create_topics(settings.brokers, topics):
        print(f"created {name}")  # noqa: T201


if __name__ == "__main__":
    main()
