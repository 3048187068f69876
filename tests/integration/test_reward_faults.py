"""One scorer's bad rollouts, on a real broker: the others do not wait, and nothing is ever scored zero for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kafka import KafkaProducer

from tba_common.kafka import Producer, Reader
from tba_common.messages import DeadLetter, Trajectories
from tba_common.topics import DEAD_LETTERS, TRAJECTORIES, rollouts
from tests.cli.local.processes import wait_until
from tests.reward.rollouts import prompt, rollout, term

pytestmark = pytest.mark.integration

ENOUGH = 100  # good rollouts


@dataclass
class Line:
    """A faulty judge as a process that is started again when it ends, and what it sent."""

    broker: str
    run_id: str
    directory: Path  # of the journal
    producer: Producer
    reader: Reader
    limit_seconds: float = 2.0  # of a visit
    retry_seconds: float = 0.5  # before the second round of visits, about
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    issues: int = 0
    scored: dict[int, Trajectories] = field(default_factory=dict)  # by issue
    dead: dict[int | None, str] = field(default_factory=dict)  # reason by issue

    def post(self, *words: str) -> list[int]:
        """Send a rollout of two completions for each word; returns their issues."""
        first = self.issues + 1
        for word in words:
            self.issues += 1
            order = prompt(term("judge"), run_id=self.run_id, issue_id=self.issues, prompt_id=self.issues)
            self.producer.send(rollouts("judge"), rollout(word, f"{word} again", of=order), key=str(self.issues))
        self.producer.flush()
        return list(range(first, self.issues + 1))

    def wait_for(self, issues: Sequence[int | None], seconds: float = 120.0) -> float:
        """Wait until each came to an end, keeping the judge alive; returns the seconds it took."""
        started = time.monotonic()

        def all_ended() -> bool:
            self._keep_alive()
            for message in (record.message() for record in self.reader.poll(0.05)):
                if isinstance(message, Trajectories):
                    self.scored[message.rollout.prompt.issue_id] = message
                elif isinstance(message, DeadLetter):
                    self.dead[message.issue_id] = message.reason
            return set(issues) <= self.scored.keys() | self.dead.keys()

        wait_until(all_ended, seconds)
        return time.monotonic() - started

    def _keep_alive(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        env = os.environ | {
            "TBA_KAFKA_SERVERS": self.broker,
            "TBA_RUN_ID": self.run_id,
            "TMPDIR": str(self.directory),
            "TBA_SHARING": "static",
            "TBA_VISIT_LIMIT_SECONDS": str(self.limit_seconds),
            "TBA_RETRY_ROUNDS": "1",
            "TBA_RETRY_SECONDS": str(self.retry_seconds),
        }
        self.process = subprocess.Popen([sys.executable, "-m", "tests.reward.faulty_scorer"], env=env)
        self.starts += 1


@pytest.fixture
def line(broker: str, run_id: str, tmp_path: Path) -> Iterator[Line]:
    producer = Producer(broker, run_id)
    reader = Reader(broker, run_id, [TRAJECTORIES.name, DEAD_LETTERS.name], {})
    line = Line(broker, run_id, tmp_path, producer, reader)
    try:
        yield line
    finally:
        if line.process is not None:
            line.process.kill()
            line.process.wait()
        reader.close()
        producer.close()


def poison(broker: str, run_id: str) -> None:
    """Send bytes that are no rollout, whatever their header says."""
    raw = KafkaProducer(bootstrap_servers=broker)
    raw.send(rollouts("judge"), b"noise", headers=[("schema", b"rollout/3"), ("run", run_id.encode())]).get(30)
    raw.close()


def test_what_cannot_be_scored_is_told_with_its_reason_and_the_rest_does_not_wait(line: Line) -> None:
    line.limit_seconds, line.retry_seconds = 15.0, 15.0  # good ones take seconds, even where the machine stalls
    line.wait_for(line.post("good"))  # the process is up
    alone = line.wait_for(line.post(*["good"] * ENOUGH))

    poison(line.broker, line.run_id)
    hang, nan, down, flaky = line.post("hang", "nan", "down", "flaky")
    good = line.post(*["good"] * ENOUGH)
    beside_faults = line.wait_for(good)
    print(f"{ENOUGH} took {alone:.1f} s alone and {beside_faults:.1f} s beside faults")
    assert {hang, down}.isdisjoint(line.dead)  # the others did not wait for them

    line.wait_for([hang, nan, down, flaky, None])  # None: the poison is of no issue
    assert line.dead.pop(None).startswith("rollout/3 does not decode")
    assert line.dead == {
        hang: "judge exceeded 15 s",
        nan: "judge score of completion 2 of 2: expected a finite number, got nan",
        down: "judge answered 503 (8 attempts)",
    }
    assert line.scored[flaky].rollout.scores[0].attempts == 3
    assert {reward for scored in line.scored.values() for reward in scored.rewards.tolist()} == {1.0}
    assert line.starts == 1


def test_a_rollout_that_crashes_its_scorer_ends_as_a_dead_letter_and_the_others_are_scored(line: Line) -> None:
    [crash] = line.post("crash")
    line.wait_for(line.post(*["good"] * 20))
    line.wait_for([crash])
    line.wait_for(line.post("good"))
    assert line.dead == {crash: "judge crashed: ZeroDivisionError('by 0') (2 attempts)"}
    assert line.starts == 3  # once at first, and once after each crash
    assert {reward for scored in line.scored.values() for reward in scored.rewards.tolist()} == {1.0}


def test_a_rollout_that_kills_its_scorer_is_found_out_and_the_others_are_scored(line: Line) -> None:
    """Wherever it lies among the others, and though two of them lie side by side."""
    good = line.post(*["good"] * 10)
    deadly = line.post("die", "die")
    good += line.post(*["good"] * 10)
    line.wait_for([*good, *deadly], 240)
    line.wait_for(line.post("good"))
    assert line.dead == dict.fromkeys(deadly, "judge died 3 times over this rollout, 2 with no other in it")
    assert line.starts <= 1 + 2 * 3
    assert {reward for scored in line.scored.values() for reward in scored.rewards.tolist()} == {1.0}


def test_a_scorer_that_is_killed_at_work_loses_no_rollout(line: Line) -> None:
    line.wait_for(line.post("good"))
    good = line.post(*["good"] * 50)
    line.wait_for(good[:5])
    assert line.process is not None
    line.process.send_signal(signal.SIGKILL)
    line.process.wait()
    line.wait_for(good)
    assert (line.dead, line.starts) == ({}, 2)
