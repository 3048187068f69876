"""Scorers that could do harm, as processes: they refuse to start where they are not safe, and serve where they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tba_common.kafka import Producer, Reader
from tba_common.messages import DeadLetter, Message, Rollout, Trajectories
from tba_common.settings import WRONG_SETTINGS
from tba_common.topics import DEAD_LETTERS, TRAJECTORIES, rollouts
from tests.cli.local.processes import wait_until
from tests.reward.judge_server import Answer, Endpoint, gullible, honest, serving
from tests.reward.rollouts import prompt, rollout, term

pytestmark = pytest.mark.integration

RUNS_IT = (
    "def score(prompt, completion, reference):\n    names = {}\n    exec(completion, names)\n    return names['x']"
)


def environment(endpoint: Endpoint) -> dict[str, str]:
    return {
        "TBA_JUDGE_URL": endpoint.url,
        "TBA_JUDGE_MODEL": "small",
        "TBA_JUDGE_ALLOWED_ORIGINS": endpoint.url.removesuffix("/v1"),
        "TBA_JUDGE_PRIVATE_HOSTS": "127.0.0.1",
    }


@contextmanager
def scorer(name: str, settings: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    command, env = [sys.executable, "-m", "services.reward", name], os.environ | settings
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def stderr_of(process: subprocess.Popen[str], *, exit_code: int) -> str:
    """What a process said that ended by itself."""
    said = process.communicate(timeout=120)[1]
    assert process.returncode == exit_code
    return said


def answers(broker: str, run_id: str, scorer_name: str, *sent: Rollout) -> list[Message]:
    """Send rollouts; return what became of them."""
    producer = Producer(broker, run_id)
    reader = Reader(broker, run_id, [TRAJECTORIES.name, DEAD_LETTERS.name], {})
    arrived: list[Message] = []

    def all_arrived() -> bool:
        arrived.extend(record.message() for record in reader.poll(0.1))
        return len(arrived) == len(sent)

    for message in sent:
        producer.send(rollouts(scorer_name), message, key="3")
    try:
        wait_until(all_arrived, 120)
    finally:
        reader.close()
        producer.close()
    return arrived


def test_code_scores_what_is_honest_and_tells_what_is_not(broker: str, run_id: str, tmp_path: Path) -> None:
    settings = {
        "TMPDIR": str(tmp_path),  # the place of its journal
        "TBA_KAFKA_SERVERS": broker,
        "TBA_RUN_ID": run_id,
        "TBA_SHARING": "static",
        "TBA_CODE_ENABLED": "true",
    }
    order, brief = (prompt(term("code", source=RUNS_IT, seconds=limit), run_id=run_id) for limit in (60, 0.5))
    sent = (
        rollout("x = 6 * 7", of=order),
        rollout("x = 1", "import os\nwhile True: os.fork()", of=order),
        rollout("while True: pass", of=brief),
        rollout("import os\nos._exit(0)", of=order),
    )
    with scorer("code", settings) as process:
        arrived = answers(broker, run_id, "code", *sent)
        process.send_signal(signal.SIGTERM)
        said = stderr_of(process, exit_code=0)
    assert "sandbox proven" in said
    assert [message.rewards.tolist() for message in arrived if isinstance(message, Trajectories)] == [[42.0]]
    reasons = sorted(message.reason for message in arrived if isinstance(message, DeadLetter))
    assert reasons == [
        "code ended with exit code 0 and gave no score on completion 1 of 1",
        "code exceeded 0.5 s on completion 1 of 1",
        "code raised PermissionError: [Errno 1] Operation not permitted in line 3 on completion 2 of 2",
    ]


def test_code_does_not_start_before_it_is_switched_on() -> None:
    with scorer("code", {}) as process:
        said = stderr_of(process, exit_code=WRONG_SETTINGS)
    assert said.splitlines()[-1].startswith("TBA_CODE_ENABLED: expected true: this scorer runs Python that tasks bring")


def test_a_judge_that_answers_500_and_then_200_gives_its_score_late(broker: str, run_id: str, tmp_path: Path) -> None:
    settings = {"TBA_KAFKA_SERVERS": broker, "TBA_RUN_ID": run_id, "TBA_SHARING": "static", "TMPDIR": str(tmp_path)}
    order = prompt(term("judge", rubric="The number must be right."), run_id=run_id)
    with serving(honest) as endpoint, scorer("judge", settings | environment(endpoint)) as process:
        wait_until(lambda: len(endpoint.requests) == 4, 120)  # it is proven
        endpoint.scripted = deque([Answer(500)])
        [scored] = answers(broker, run_id, "judge", rollout("19", of=order))
        process.send_signal(signal.SIGTERM)
        stderr_of(process, exit_code=0)
    assert isinstance(scored, Trajectories)
    assert scored.rewards.tolist() == [1.0]
    [score] = scored.rollout.scores
    assert (score.scorer, score.attempts, score.version) == ("judge", 2, "1/small")
    assert score.details["disagreement"].tolist() == [0.0]


def test_a_judge_that_can_be_talked_into_a_score_does_not_start() -> None:
    with serving(gullible) as endpoint, scorer("judge", environment(endpoint)) as process:
        said = stderr_of(process, exit_code=WRONG_SETTINGS)
    assert "judge: small is not fit to judge: judge gave a wrong answer that asks for a score 1" in said


def test_a_judge_elsewhere_than_allowed_does_not_start() -> None:
    with serving(honest) as endpoint:
        settings = environment(endpoint) | {"TBA_JUDGE_ALLOWED_ORIGINS": "https://api.example.com"}
        with scorer("judge", settings) as process:
            said = stderr_of(process, exit_code=WRONG_SETTINGS)
        assert endpoint.requests == []
    assert "TBA_JUDGE_URL: expected an origin of TBA_JUDGE_ALLOWED_ORIGINS (https://api.example.com)" in said
