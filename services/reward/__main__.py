"""`python -m services.reward verifier`, or `reward_model.gold`: one process that scores rollouts."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from tba_common.tasks import SCORER_KINDS, is_scorer_name

if TYPE_CHECKING:
    from services.reward.scorer import Scorer


def main() -> None:
    """Run the scorer that the arguments name; settings come from the environment, as TBA_<FIELD>."""
    if sys.argv[1:2] == ["train-reward-model"]:
        from services.reward import train_reward_model

        return train_reward_model.main(sys.argv[2:])
    also = "`train-reward-model --help` tells how to make a reward model from preference pairs"
    parser = argparse.ArgumentParser(prog="python -m services.reward", description=__doc__, epilog=also)
    parser.add_argument(
        "scorer",
        type=_scorer_name,
        metavar="kind[.instance]",
        help=f"take rollouts from this scorer's topic, score them, send them on; kinds: {', '.join(SCORER_KINDS)}",
    )
    return run(parser.parse_args().scorer)


def _scorer_name(name: str) -> str:
    if not is_scorer_name(name):
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(SCORER_KINDS)}, or such a name with .instance, got {name!r}"
        )
    return name


def run(name: str) -> None:
    """Open a scorer by its name and serve it."""
    from services.reward.scorer import open_scorer

    serve(name, open_scorer)


def serve(name: str, opened: Callable[[str], AbstractContextManager[Scorer]]) -> None:
    """Score until SIGTERM, then finish what is in the scorer; not ready before it is open."""
    from services.reward.journal import open_journal
    from services.reward.settings import RewardSettings
    from services.reward.worker import Worker
    from tba_common.delivery import DeadLetters, may_outlive_the_broker
    from tba_common.kafka import Consumer, Producer
    from tba_common.lifecycle import Lifecycle
    from tba_common.topics import retries, rollouts

    settings, service = RewardSettings.from_environment(), f"tba-reward-{name}"
    # Closed in reverse: the consumers before the producer whose acks it commits, the scorer.
    with Lifecycle(service, settings) as life, may_outlive_the_broker(life.stop), contextlib.ExitStack() as stack:
        scorer = stack.enter_context(opened(name))
        journal = stack.enter_context(open_journal(service, settings))
        sending = Producer(settings.brokers, settings.run_id, stop=life.stop)
        producer = stack.enter_context(contextlib.closing(sending))
        first, late = (
            stack.enter_context(contextlib.closing(Consumer(settings, topic, group, window=settings.window)))
            for topic, group in ((rollouts(name), service), (retries(name), f"{service}-retries"))
        )
        worker = Worker(
            scorer=scorer,
            consumer=first,
            retry_consumer=late,
            producer=producer,
            dead_letters=DeadLetters(producer, settings.run_id, service),
            journal=journal,
            settings=settings,
        )
        life.ready(True)
        while not life.stop.is_set():
            worker.step()
            life.beat()
        worker.drain()


if __name__ == "__main__":
    main()
