"""Kill every kind of process during a run, each once: the run finishes, and nothing is lost or doubled."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest

from tba_cli.client import Client
from tba_cli.local.stack import Stack, StackOptions
from tba_common.tasks import PromptSpec, Sampling, ScorerTerm, Target, Task

STEPS: Final = 300  # a fast machine makes dozens while a killed process starts again
PROMPTS: Final = [
    PromptSpec(text=f"{a}+{b}=", reference=str(a + b), key=f"{a}+{b}") for a in range(10) for b in range(10)
]
TASK: Final = Task(
    name="sums",
    reward=(ScorerTerm(scorer="verifier", options={"match": "exact"}),),
    sampling=Sampling(completions=8, max_new_tokens=4),
    target=Target(beta=0.1),
)
ENVIRONMENT: Final = {
    "tba-buffer": {
        "TBA_GROUPS_PER_BATCH": "4",
        "TBA_TRAJECTORIES_PER_GROUP": "4",
        "TBA_MIN_SIZE": "32",
        "TBA_REISSUE_SECONDS": "10",
    },
    "tba-learner": {"TBA_MAX_STEPS": str(STEPS), "TBA_CHECKPOINT_EVERY": "5", "TBA_LEARNING_RATE": "1e-4"},
}
VICTIMS: Final = ("tba-generator-0", "tba-reward-verifier-0", "tba-buffer", "tba-api", "tba-learner", "kafka-broker")
BETWEEN_STEPS: Final = 5
PROGRESS_SECONDS: Final = 180.0

pytestmark = pytest.mark.e2e


@pytest.fixture
def stack(tiny_model: Path, tmp_path: Path) -> Iterator[Stack]:
    options = StackOptions(directory=tmp_path / "stack", model=str(tiny_model), run_id="chaos", env=ENVIRONMENT)
    with Stack(options) as stack:
        yield stack


def test_a_run_survives_the_death_of_each_process(stack: Stack) -> None:
    with Client(stack.url, attempts=9) as client:
        client.post_task(TASK, PROMPTS)
        for victim in VICTIMS:
            wait_for_steps(stack, client, BETWEEN_STEPS)
            stack.kill(victim, signal.SIGKILL)
        wait_for_steps(stack, client, BETWEEN_STEPS)
        lose_reports_that_the_buffer_has_not_read(stack)
        stack.wait_for(stack.learner_is_done, seconds=600, what="the last step")
        client.pause(TASK.name)
        stack.wait_for(lambda: client.status().ledger.in_flight == 0, seconds=120, what="an empty line")

        assert all(stack.restarts()[victim] >= 1 for victim in VICTIMS)
        assert client.task(TASK.name).progress.prompts_train == len(PROMPTS)
        assert client.status().ledger.balances
        assert [step.step for step in client.steps()] == list(range(1, STEPS + 1))
        assert [step.batch_id for step in client.steps()] == list(range(1, STEPS + 1))
    assert_nothing_lost_or_doubled(stack)
    assert resumed_from_a_checkpoint(stack)


def lose_reports_that_the_buffer_has_not_read(stack: Stack) -> None:
    stack.kill("tba-buffer", signal.SIGSTOP)
    time.sleep(2)  # the learner trains what it has, and the broker acknowledges its reports
    stack.kill("kafka-broker", signal.SIGKILL)
    stack.kill("tba-buffer", signal.SIGCONT)


def wait_for_steps(stack: Stack, client: Client, count: int) -> None:
    target = client.status().step + count
    what = f"step {target}"
    stack.wait_for(lambda: client.status().step >= target, seconds=PROGRESS_SECONDS, what=what)


def assert_nothing_lost_or_doubled(stack: Stack) -> None:
    with psycopg.connect(stack.database_url.replace("postgresql+psycopg", "postgresql")) as connection:

        def one(query: str) -> int:
            row = connection.execute(query).fetchone()
            assert row is not None
            return int(row[0])

        # Every prompt that the API acknowledged was ordered, and every order came to its end.
        assert one("SELECT count(*) FROM prompts WHERE issues = 0") == 0
        assert one("SELECT count(*) FROM issues WHERE state = 'in_flight'") == 0
        # No trajectory twice, and each order's account equals what is in the store.
        assert one("SELECT count(*) - count(DISTINCT (prompt_id, fingerprint)) FROM trajectories") == 0
        stored = one("SELECT sum(stored) FROM issues WHERE purpose = 'train'")
        assert stored == one("SELECT count(*) FROM trajectories") + one("SELECT sum(evicted) FROM sampler_state")
        issued = one("SELECT sum(completions) FROM issues")
        settled = one("SELECT sum(stored + duplicates + dead_lettered + expired) FROM issues")
        assert issued == settled


def resumed_from_a_checkpoint(stack: Stack) -> bool:
    log = (stack.directory / "logs" / "tba-learner.log").read_text()
    lines = [line for line in log.splitlines() if "services.learner.loop: resumed" in line]
    steps = [int(word.removeprefix("step=")) for line in lines for word in line.split() if word.startswith("step=")]
    return len(steps) >= 2 and steps[0] == 0 and all(step > 0 for step in steps[1:])
