"""The verifier as a process, on a real broker: it scores, tells what it cannot score, and stops when asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tba_common.kafka import Producer, Reader
from tba_common.messages import DeadLetter, Message, Trajectories
from tba_common.topics import DEAD_LETTERS, TRAJECTORIES, rollouts
from tests.cli.local.processes import wait_until
from tests.reward.rollouts import prompt, rollout, term

pytestmark = pytest.mark.integration


@pytest.fixture
def service(broker: str, run_id: str, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    env = os.environ | {
        "TBA_KAFKA_SERVERS": broker,
        "TBA_RUN_ID": run_id,
        "TBA_SHARING": "static",
        "TBA_TIME_LIMIT_SECONDS": "5",
        "TMPDIR": str(tmp_path),  # the place of its journal
    }
    process = subprocess.Popen([sys.executable, "-m", "services.reward", "verifier"], env=env)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_rollouts_become_trajectories_or_dead_letters_and_a_stop_is_clean(
    broker: str, run_id: str, service: subprocess.Popen[bytes]
) -> None:
    producer = Producer(broker, run_id)
    reader = Reader(broker, run_id, [TRAJECTORIES.name, DEAD_LETTERS.name], {})
    arrived: list[Message] = []

    def all_arrived() -> bool:
        arrived.extend(record.message() for record in reader.poll(0.1))
        return len(arrived) == 3

    exact, math = prompt(term(match="exact"), run_id=run_id), prompt(term(match="math"), run_id=run_id)
    for message in (
        rollout("19", "20", of=exact),
        rollout("19", "$9^{9^9}$", of=math),
        rollout("so $\\frac{38}{2}$", of=math),
    ):
        producer.send(rollouts("verifier"), message, key="3")
    try:
        wait_until(all_arrived, 120)
    finally:
        reader.close()
        producer.close()

    rewards = sorted(m.rewards.tolist() for m in arrived if isinstance(m, Trajectories))
    assert rewards == [[1.0], [1.0, 0.0]]
    assert [m.reason for m in arrived if isinstance(m, DeadLetter)] == ["verifier exceeded 5 s on completion 2 of 2"]
    service.send_signal(signal.SIGTERM)
    assert service.wait(60) == 0
