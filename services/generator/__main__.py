"""`python -m services.generator worker`, one process that samples, and `autoscaler`, which says how many there are."""

from __future__ import annotations

import argparse
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.generator.autoscaler import Actuator
    from services.generator.autoscaler_settings import AutoscalerSettings
    from services.generator.engine import Engine
    from services.generator.settings import GeneratorSettings
    from services.generator.worker import Worker
    from tba_common.lifecycle import Lifecycle


def main() -> None:
    """Run the command that the arguments name; settings come from the environment, as TBA_<FIELD>."""
    parser = argparse.ArgumentParser(prog="python -m services.generator", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("worker", help="take prompts, sample their completions, send them to the scorers")
    commands.add_parser("autoscaler", help="keep as many workers as the learner needs")
    {"worker": run_worker, "autoscaler": run_autoscaler}[parser.parse_args().command]()


def run_worker() -> None:
    """Sample until SIGTERM, then finish what is in flight."""
    from services.generator.engine import Interrupted
    from services.generator.settings import GeneratorSettings
    from tba_common.delivery import may_outlive_the_broker
    from tba_common.lifecycle import Lifecycle

    settings = GeneratorSettings.from_environment()
    with Lifecycle("tba-generator", settings) as life, may_outlive_the_broker(life.stop), ExitStack() as stack:
        worker = _worker(settings, life, stack)
        with suppress(Interrupted):
            while not life.stop.is_set():
                worker.step()
                life.beat()
                life.ready(not worker.trouble, worker.trouble)
            worker.drain(lambda: life.seconds_left)


def run_autoscaler() -> None:
    """Decide until SIGTERM, then let another one lead. Needs no torch, and no database."""
    import os
    import socket
    import time

    from services.generator.autoscaler import Autoscaler
    from services.generator.autoscaler_settings import AutoscalerSettings
    from services.generator.scaling_api import ScalingApi
    from tba_common.lifecycle import Lifecycle

    settings = AutoscalerSettings.from_environment()
    name = f"{socket.gethostname()}/{os.getpid()}"
    key = None if settings.api_key is None else settings.api_key.get_secret_value()
    with Lifecycle("tba-autoscaler", settings) as life, ExitStack() as stack:
        actuator = stack.enter_context(closing(_actuator(settings, name)))
        api = ScalingApi(settings.api_url, key, name)
        autoscaler = Autoscaler(api, actuator, settings.limits, dry_run=settings.dry_run)
        pause = min(settings.interval_seconds, settings.lease_seconds / 8)
        next_at = 0.0
        while not life.stop.wait(pause if next_at else 0.0):
            if time.monotonic() >= next_at:
                life.ready(not (trouble := autoscaler.step()), trouble)
                next_at = time.monotonic() + settings.interval_seconds
            else:
                autoscaler.keep_leading()
            life.beat()


def _actuator(settings: AutoscalerSettings, name: str) -> Actuator:
    if settings.generator_addresses:
        from services.generator.process_actuator import ProcessActuator

        return ProcessActuator(settings.generator_addresses.split(","))
    from services.generator.kubernetes_actuator import KubernetesActuator, connect

    return KubernetesActuator(
        connect(),
        namespace=settings.namespace,
        deployment=settings.deployment,
        lease=settings.lease,
        identity=name,
        lease_seconds=settings.lease_seconds,
    )


def _worker(settings: GeneratorSettings, life: Lifecycle, stack: ExitStack) -> Worker:
    """Wire a worker to its doors; `stack` closes them, the consumer before the producer, and a download last."""
    import os
    import socket
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from services.generator.weight_sync import WeightSync
    from services.generator.worker import Worker
    from tba_common.delivery import DeadLetters
    from tba_common.kafka import Consumer, Producer, Reader
    from tba_common.topics import PROMPTS, WEIGHTS
    from tba_common.weights import WeightStore

    brokers, run_id, at_once = settings.brokers, settings.run_id, settings.max_batch_completions
    fetcher = stack.enter_context(ThreadPoolExecutor(1, "fetch"))  # closing it waits for what it is at
    engine = stack.enter_context(closing(_engine(settings, life)))
    producer = stack.enter_context(closing(Producer(brokers, run_id, stop=life.stop)))
    reader = stack.enter_context(closing(Reader(brokers, run_id, [WEIGHTS.name], {})))
    consumer = Consumer(settings, PROMPTS.name, "tba-generator", window=2 * at_once)
    return Worker(
        engine=engine,
        weights=WeightSync(
            engine,
            reader,
            WeightStore(settings.weights_url, settings.weights_cache_directory),
            tolerance=settings.canary_tolerance,
            max_versions_behind=settings.max_versions_behind,
            fetcher=fetcher,
        ),
        consumer=stack.enter_context(closing(consumer)),
        producer=producer,
        dead_letters=DeadLetters(producer, run_id, life.service),
        run_id=run_id,
        name=f"{socket.gethostname()}/{os.getpid()}",
        max_completions=at_once,
        rng=np.random.default_rng(),
    )


def _engine(settings: GeneratorSettings, life: Lifecycle) -> Engine:
    from importlib.util import find_spec

    has_vllm = find_spec("vllm") is not None
    if settings.engine == "vllm" and not has_vllm:
        raise SystemExit("TBA_ENGINE=vllm: vLLM is not installed here; the extras are generator and generator-cpu")
    if settings.engine == "transformers" or not has_vllm:
        return _hf_engine(settings, life)
    from services.generator.vllm_engine import VllmEngine

    return VllmEngine(
        dtype=settings.dtype,
        max_batch_completions=settings.max_batch_completions,
        cache_bytes=settings.cache_bytes,
        tensor_parallel=settings.tensor_parallel,
        progress=life.beat,
    )


def _hf_engine(settings: GeneratorSettings, life: Lifecycle) -> Engine:
    from services.generator.engine import Interrupted
    from services.generator.hf_engine import HfEngine
    from services.generator.worker import HAND_BACK_SECONDS

    def progress() -> None:
        life.beat()
        if life.seconds_left < HAND_BACK_SECONDS:
            raise Interrupted

    return HfEngine(
        device=settings.device,
        dtype=settings.dtype,
        max_batch_completions=settings.max_batch_completions,
        progress=progress,
    )


if __name__ == "__main__":
    main()
