"""What a rollout costs on the wire: our packed messages against JSON, and rollouts a second through a real broker.

    python -m tests.bench.wire

The last line is one JSON object. Ratios compare two things measured in this one run; machines are noisy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from tba_cli.local import kafka_broker
from tba_common.codec import decode, encode
from tba_common.kafka import Producer, Reader
from tba_common.messages import Completion, Prompt, Rollout
from tba_common.tasks import Sampling, ScorerTerm
from tba_common.topics import PROMPTS, rollouts

COMPLETIONS: Final = 16
TOKENS: Final = 384
REPEATS: Final = 50
SENT: Final = 300


def rollout() -> Rollout:
    """A rollout of the usual size: 16 completions of 384 tokens."""
    rng = np.random.default_rng(0)
    completion = Completion(
        token_ids=rng.integers(0, 50_000, TOKENS),
        logprobs=-rng.random(TOKENS),
        text="x" * 4 * TOKENS,
        finish_reason="eos",
        policy_version=1,
    )
    terms = (ScorerTerm(scorer="verifier"),)
    prompt = Prompt(run_id="bench", issue_id=1, task_id=1, prompt_id=1, text="?", sampling=Sampling(), reward=terms)
    return Rollout(
        run_id="bench",
        prompt=prompt,
        prompt_token_ids=rng.integers(0, 50_000, 64),
        completions=(completion,) * COMPLETIONS,
        temperature=1.0,
        top_p=1.0,
        generator="bench",
        remaining=("verifier",),
    )


def as_json(message: Rollout) -> bytes:
    """The same rollout as JSON with numbers in lists."""
    fields = message.model_dump(mode="python")
    return json.dumps(fields, default=lambda value: value.tolist()).encode()


def milliseconds(work: Callable[[], object]) -> float:
    """The fastest of some tries: what the work costs when nothing is in its way."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times) * 1e3


def through_the_broker(message: Rollout) -> float:
    """Rollouts a second, produced and read back."""
    with kafka_broker.running() as servers:
        producer = Producer(servers, "bench")
        reader = Reader(servers, "bench", [rollouts("verifier")], {})
        began = time.perf_counter()
        for number in range(SENT):
            producer.send(rollouts("verifier"), message, key=str(number % PROMPTS.partitions))
        producer.flush()
        seen = 0
        while seen < SENT:
            seen += len([record.message() for record in reader.poll(1.0)])
        seconds = time.perf_counter() - began
        reader.close()
        producer.close()
    return SENT / seconds


def main() -> None:
    """Measure, print a table, and the figures as one JSON line."""
    message = rollout()
    schema, body = encode(message)
    text = as_json(message)
    figures = {
        "rollout_bytes": len(body),
        "bytes_vs_json": round(len(text) / len(body), 2),
        "encode_vs_json": round(milliseconds(lambda: as_json(message)) / milliseconds(lambda: encode(message)), 2),
        "decode_vs_json": round(milliseconds(lambda: json.loads(text)) / milliseconds(lambda: decode(schema, body)), 2),
        "rollouts_per_second": round(through_the_broker(message), 1),
    }
    table = Table("figure", "value", title=f"A rollout of {COMPLETIONS} x {TOKENS} tokens on the wire")
    for name, value in figures.items():
        table.add_row(name, f"{value:,}")
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
