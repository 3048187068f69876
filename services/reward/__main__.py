"""`python -m services.reward verifier`: one process that scores rollouts."""

from __future__ import annotations

import argparse
import contextlib

from tba_common.tasks import SCORERS


def main() -> None:
    """Run the scorer that the arguments name; settings come from the environment, as TBA_<FIELD>."""
    parser = argparse.ArgumentParser(prog="python -m services.reward", description=__doc__)
    parser.add_argument(
        "scorer", choices=SCORERS, help="take rollouts from this scorer's topic, score them, send them on"
    )
    run(parser.parse_args().scorer)


def run(name: str) -> None:
    """Score until SIGTERM, then finish what is in the scorer."""
    from services.reward.scorer import open_scorer
    from services.reward.settings import RewardSettings
    from services.reward.worker import Worker
    from tba_common.delivery import DeadLetters
    from tba_common.kafka import Consumer, Producer
    from tba_common.lifecycle import Lifecycle
    from tba_common.topics import rollouts

    settings, service = RewardSettings.from_environment(), f"tba-reward-{name}"
    # Closed in reverse: the worker's threads, the consumer before the producer whose acks it commits, the scorer.
    with Lifecycle(service, settings) as life, contextlib.ExitStack() as stack:
        scorer = stack.enter_context(open_scorer(name, settings))
        producer = stack.enter_context(contextlib.closing(Producer(settings.kafka_servers, settings.run_id)))
        consumer = Consumer(settings, rollouts(name), service, window=settings.window)
        worker = Worker(
            scorer=scorer,
            consumer=stack.enter_context(contextlib.closing(consumer)),
            producer=producer,
            dead_letters=DeadLetters(producer, settings.run_id, service),
            parallel_rollouts=settings.parallel_rollouts,
        )
        stack.enter_context(worker)
        life.ready(True)
        while not life.stop.is_set():
            worker.step()
            life.beat()
        worker.drain()


if __name__ == "__main__":
    main()
