"""The generator process on a real broker: prompts in, rollouts out, weights followed, SIGTERM obeyed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tba_common.kafka import Consumer, Producer, Reader
from tba_common.messages import Prompt, Rollout
from tba_common.settings import WorkerSettings
from tba_common.tasks import Sampling, ScorerTerm
from tba_common.topics import PROMPTS, WEIGHTS, rollouts
from tests.generator.tiny_policy import Policy, Publisher

pytestmark = pytest.mark.integration

TRAINING: Final = Sampling(completions=4, max_new_tokens=6)
GREEDY: Final = Sampling(completions=1, max_new_tokens=6, temperature=0)


def prompt(run_id: str, issue_id: int, version: int | None = None) -> Prompt:
    return Prompt(
        run_id=run_id,
        issue_id=issue_id,
        task_id=1,
        prompt_id=issue_id,
        purpose="train" if version is None else "eval",
        policy_version=version,
        text="1+2=",
        sampling=TRAINING if version is None else GREEDY,
        reward=(ScorerTerm(scorer="verifier"),),
    )


@contextlib.contextmanager
def generator(broker: str, run_id: str, weights: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {
        "TBA_KAFKA_SERVERS": broker,
        "TBA_RUN_ID": run_id,
        "TBA_WEIGHTS_URL": str(weights),
        "TBA_SHARING": "static",
        "TBA_CANARY_TOLERANCE": "0.001",
    }
    process = subprocess.Popen([sys.executable, "-m", "services.generator", "worker"], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def read_until(reader: Reader, enough: Callable[[list[Rollout]], bool]) -> list[Rollout]:
    found: list[Rollout] = []
    deadline = time.monotonic() + 180
    while not enough(found):
        assert time.monotonic() < deadline, f"{len(found)} rollouts within three minutes"
        messages = [record.message() for record in reader.poll(0.5)]
        found += [message for message in messages if isinstance(message, Rollout)]
    return found


def next_prompt(broker: str, run_id: str) -> int:
    """What the next process of the group would take first: everything before was committed."""
    settings = WorkerSettings(run_id=run_id, kafka_servers=broker, sharing="static")
    with contextlib.closing(Consumer(settings, PROMPTS.name, "tba-generator", window=10)) as consumer:
        (record,) = consumer.take(1, 60)
    message = record.message()
    assert isinstance(message, Prompt)
    return message.issue_id


def test_prompts_become_rollouts_of_the_right_versions_and_sigterm_ends_it_cleanly(
    broker: str, run_id: str, tmp_path: Path
) -> None:
    publisher = Publisher(tmp_path / "weights")
    old, new = (publisher.publish(v, Policy(seed=v)).model_copy(update={"run_id": run_id}) for v in (1, 2))
    with (
        contextlib.closing(Producer(broker, run_id)) as producer,
        contextlib.closing(Reader(broker, run_id, [rollouts("verifier")], {})) as reader,
        generator(broker, run_id, tmp_path / "weights") as process,
    ):
        producer.send(WEIGHTS.name, old, key=run_id)
        for issue_id in range(20):
            producer.send(PROMPTS.name, prompt(run_id, issue_id), partition=issue_id % PROMPTS.partitions)
        first = read_until(reader, lambda found: len(found) >= 20)
        producer.send(WEIGHTS.name, new, key=run_id)
        producer.send(PROMPTS.name, prompt(run_id, 50, version=2))
        producer.send(PROMPTS.name, prompt(run_id, 51, version=1))
        second = read_until(reader, lambda found: len(found) >= 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
        producer.send(PROMPTS.name, prompt(run_id, 60))
        producer.flush()
    assert sorted(rollout.prompt.issue_id for rollout in first) == list(range(20))
    assert {len(rollout.completions) for rollout in first} == {4}
    assert {c.policy_version for rollout in first for c in rollout.completions} == {1}
    assert {r.prompt.issue_id: r.completions[0].policy_version for r in second} == {50: 2, 51: 1}
    assert next_prompt(broker, run_id) == 60
