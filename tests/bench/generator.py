"""What the generator service costs over raw vLLM, how long a swap of weights takes, and how exact both engines are.

    python -m tests.bench.generator [--model FOLDER]

Needs `make vllm`. The service takes prompts from a real broker and sends rollouts back to it; vLLM's own offline
generation of the same prompts runs before and after it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from services.generator.engine import Request
from services.generator.hf_engine import HfEngine
from services.learner.collate import pad_rows
from services.learner.policy import Policy
from tba_cli.local import kafka_broker
from tba_cli.local.ports import LOOPBACK, free_ports, is_ready
from tba_cli.presets.preset import Start
from tba_cli.presets.smollm2 import unpacked
from tba_common.kafka import Producer, Reader
from tba_common.messages import Completion, Prompt, Rollout
from tba_common.tasks import Sampling, ScorerTerm
from tba_common.topics import PROMPTS, WEIGHTS, rollouts
from tba_common.weights import Snapshot, WeightStore

PYTHON: Final = Path(__file__).parents[2] / ".venv-vllm/bin/python"
RUN: Final = "bench"
DTYPE: Final = "bfloat16" if torch.cuda.is_available() else "float32"  # without AVX-512, bfloat16 crawls on a CPU
AT_ONCE: Final = 64
COMPLETIONS: Final = 8
TOKENS: Final = 32
QUESTIONS: Final = [f"What is {a} times {b}? Explain how you found it." for a in range(3, 7) for b in range(4, 8)]
START_SECONDS: Final = 240.0


@dataclass(frozen=True)
class Service:
    """A running generator and the broker between it and us."""

    producer: Producer
    reader: Reader
    health: str

    def ask(self, first_id: int, texts: list[str], *, completions: int, tokens: int) -> None:
        sampling = Sampling(completions=completions, temperature=1.0, max_new_tokens=tokens)
        for i, text in enumerate(texts, start=first_id):
            prompt = Prompt(
                run_id=RUN,
                issue_id=i,
                task_id=1,
                prompt_id=i,
                text=text,
                prompt_format="chat",
                sampling=sampling,
                reward=(ScorerTerm(scorer="verifier"),),
            )
            self.producer.send(PROMPTS.name, prompt, partition=i % PROMPTS.partitions)
        self.producer.flush()

    def answers(self, count: int) -> list[Rollout]:
        found: list[Rollout] = []
        while len(found) < count:
            found += [m for record in self.reader.poll(1.0) if isinstance(m := record.message(), Rollout)]
        return found

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://{self.health}/metrics") as page:
            lines = page.read().decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(name)))


@contextlib.contextmanager
def service(store: Path, servers: str) -> Iterator[Service]:
    """The generator as it runs everywhere, on vLLM."""
    health = f"{LOOPBACK}:{free_ports(1)[0]}"
    settings = {
        "TBA_RUN_ID": RUN,
        "TBA_KAFKA_SERVERS": servers,
        "TBA_HEALTH_ADDRESS": health,
        "TBA_WEIGHTS_URL": str(store),
        "TBA_SHARING": "static",
        "TBA_ENGINE": "vllm",
        "TBA_DTYPE": DTYPE,
        "TBA_MAX_BATCH_COMPLETIONS": str(AT_ONCE),
        "TBA_CANARY_TOLERANCE": "0.2",
    }
    command = [str(PYTHON), "-m", "services.generator", "worker"]
    with (
        contextlib.closing(Producer(servers, RUN)) as producer,
        contextlib.closing(Reader(servers, RUN, [rollouts("verifier")], {})) as reader,
        subprocess.Popen(command, env={**os.environ, **settings}) as process,
    ):
        try:
            wait_until(lambda: is_ready(health), START_SECONDS)
            yield Service(producer, reader, health)
        finally:
            process.terminate()


def wait_until(condition: Any, seconds: float) -> float:
    """Return how long it took."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > seconds:
            raise TimeoutError(f"not within {seconds:.0f} s")
        time.sleep(0.02)
    return time.perf_counter() - began


def offline(model: Path, prompts: list[list[int]]) -> float:
    """Tokens a second of `LLM.generate`."""
    asked = {"prompts": prompts, "completions": COMPLETIONS, "tokens": TOKENS, "at_once": AT_ONCE, "dtype": DTYPE}
    command = [str(PYTHON), "-m", "tests.bench._offline_vllm", "--model", str(model)]
    env = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # as the service; bound, it would leave a core idle
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True, env=env)
    figures = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))  # vLLM speaks last
    return float(json.loads(figures)["tokens_per_second"])


def gap(policy: Policy, answers: list[tuple[tuple[int, ...], Completion]]) -> float:
    """Mean absolute difference per token between the engine's log-probabilities and the learner's, in nats."""
    differences = []
    for prompt, completion in answers:
        rows = pad_rows(
            [(prompt, tuple(completion.token_ids.tolist()))],
            temperature=[1.0],
            pad_token_id=0,
            device=torch.device("cpu"),
        )
        ids, start = rows.input_ids, len(prompt)
        with torch.no_grad():
            logits = policy.model(input_ids=ids).logits[0, start - 1 : -1].float().log_softmax(-1)
        learner = logits.gather(-1, ids[0, start:, None]).squeeze(-1).numpy()
        differences.append(np.abs(learner - completion.logprobs))
    return float(np.concatenate(differences).mean())


def transformers_answers(snapshot: Snapshot) -> list[tuple[tuple[int, ...], Completion]]:
    engine = HfEngine(device="cpu", dtype="float32", seed=0)
    engine.load(snapshot)
    engine.submit(Request(0, QUESTIONS[0], "chat", COMPLETIONS, 1.0, 1.0, TOKENS))
    (finished,) = engine.collect(0)
    return [(finished.prompt_token_ids, completion) for completion in finished.completions]


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, fetched and unpacked once."""
    return unpacked(Start(directory=Path("runs"), models=Path("runs/models"), prompts=(), say=print)).policy


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="Hugging Face folder with a chat template; default: SmolLM2-135M")
    model = parser.parse_args().model or smollm2()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        policy = Policy.load(str(model), device="cpu")
        store = WeightStore(directory / "weights")
        announcement = store.publish(RUN, 0, 0, policy.save, canary=policy.canary(), steps_per_version=1)
        snapshot = store.fetch(announcement)
        template: Any = policy.tokenizer
        tokenized = [
            list(
                template(
                    template.apply_chat_template(
                        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
                    ),
                    add_special_tokens=False,
                )["input_ids"]
            )
            for text in QUESTIONS
        ]
        before = offline(model, tokenized)
        servers = stack.enter_context(kafka_broker.running())
        first = stack.enter_context(contextlib.closing(Producer(servers, RUN)))
        first.send(WEIGHTS.name, announcement, key=RUN)
        first.flush()
        with service(directory / "weights", servers) as running:
            running.ask(10_000, QUESTIONS[:2], completions=COMPLETIONS, tokens=TOKENS)
            running.answers(2)
            began = time.perf_counter()
            running.ask(0, QUESTIONS, completions=COMPLETIONS, tokens=TOKENS)
            found = running.answers(len(QUESTIONS))
            seconds = time.perf_counter() - began
            tokens = sum(len(completion.token_ids) for rollout in found for completion in rollout.completions)
            sampled = [(tuple(r.prompt_token_ids.tolist()), c) for r in found[:4] for c in r.completions[:2]]
            gaps = {
                "logprob_gap_vllm": gap(policy, sampled),
                "logprob_gap_transformers": gap(policy, transformers_answers(snapshot)),
            }
            figures = gaps | swap(running, policy, store, first)
        after = offline(model, tokenized)
        rate, raw = tokens / seconds, (before + after) / 2
        figures |= {
            "tokens_per_second": rate,
            "offline_tokens_per_second": raw,
            "overhead_ratio": rate / raw,
        }
    show(figures)


def swap(running: Service, policy: Policy, store: WeightStore, producer: Producer) -> dict[str, float]:
    """Publish a version under eight requests in flight."""
    with torch.no_grad():
        for weight in policy.trained.values():
            weight.mul_(1.0005)
    announcement = store.publish(RUN, 1, 1, policy.save, canary=policy.canary(), steps_per_version=1)
    running.ask(20_000, QUESTIONS[:8], completions=1, tokens=200)
    wait_until(lambda: running.metric("tba_generator_running_completions") >= 8, 30)
    before = running.metric("tba_generator_pause_seconds_sum")
    producer.send(WEIGHTS.name, announcement, key=RUN)
    producer.flush()
    seconds = wait_until(lambda: running.metric("tba_generator_policy_version") == 1, 60)
    swapped = [c for rollout in running.answers(8) for c in rollout.completions if c.spans]
    return {
        "update_pause_seconds": running.metric("tba_generator_pause_seconds_sum") - before,
        "announce_to_serving_seconds": seconds,
        "swapped_in_flight": float(len(swapped)),
        "canary_gap": running.metric("tba_generator_canary_gap_nats"),
    }


def show(figures: dict[str, float]) -> None:
    table = Table("figure", "value", box=None)
    for name, value in figures.items():
        table.add_row(name, f"{value:,.4g}")
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
