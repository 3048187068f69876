"""`python -m services.generator worker`: one process that samples completions."""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.generator.engine import Engine
    from services.generator.settings import GeneratorSettings
    from services.generator.worker import Worker
    from tba_common.lifecycle import Lifecycle


def main() -> None:
    """Run the command that the arguments name; settings come from the environment, as TBA_<FIELD>."""
    parser = argparse.ArgumentParser(prog="python -m services.generator", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("worker", help="take prompts, sample their completions, send them to the scorers")
    parser.parse_args()
    run_worker()


def run_worker() -> None:
    """Sample until SIGTERM, then finish what is in flight."""
    from services.generator.settings import GeneratorSettings
    from tba_common.lifecycle import Lifecycle

    settings = GeneratorSettings.from_environment()
    with Lifecycle("tba-generator", settings) as life, contextlib.ExitStack() as stack:
        worker = _worker(settings, life, stack)
        while not life.stop.is_set():
            worker.step()
            life.beat()
            life.ready(not worker.trouble, worker.trouble)
        worker.drain()


def _worker(settings: GeneratorSettings, life: Lifecycle, stack: contextlib.ExitStack) -> Worker:
    """Wire a worker to its doors; `stack` closes them, the consumer before the producer."""
    import os
    import socket

    import numpy as np

    from services.generator.weight_sync import WeightSync
    from services.generator.worker import Worker
    from tba_common.delivery import DeadLetters
    from tba_common.kafka import Consumer, Producer, Reader
    from tba_common.topics import PROMPTS, WEIGHTS
    from tba_common.weights import WeightStore

    servers, run_id, at_once = settings.kafka_servers, settings.run_id, settings.max_batch_completions
    engine = _engine(settings, life)
    producer = stack.enter_context(contextlib.closing(Producer(servers, run_id)))
    reader = stack.enter_context(contextlib.closing(Reader(servers, run_id, [WEIGHTS.name], {})))
    consumer = Consumer(settings, PROMPTS.name, "tba-generator", window=2 * at_once)
    return Worker(
        engine=engine,
        weights=WeightSync(
            engine, reader, WeightStore(settings.weights_directory), tolerance=settings.canary_tolerance
        ),
        consumer=stack.enter_context(contextlib.closing(consumer)),
        producer=producer,
        dead_letters=DeadLetters(producer, run_id, life.service),
        run_id=run_id,
        name=f"{socket.gethostname()}/{os.getpid()}",
        max_completions=at_once,
        rng=np.random.default_rng(),
    )


def _engine(settings: GeneratorSettings, life: Lifecycle) -> Engine:
    from services.generator.hf_engine import HfEngine

    return HfEngine(
        device=settings.device,
        dtype=settings.dtype,
        max_batch_completions=settings.max_batch_completions,
        progress=life.beat,
    )


if __name__ == "__main__":
    main()
