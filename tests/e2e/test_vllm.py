"""The whole line with generators on vLLM, in the environment that `make vllm` creates."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest

from tba_cli.client import Client
from tba_cli.local.stack import Stack, StackOptions
from tba_common.kafka import Reader
from tba_common.messages import Trajectories
from tba_common.tasks import PromptSpec, Sampling, ScorerTerm, Target, Task
from tba_common.topics import TRAJECTORIES

PYTHON: Final = Path(__file__).parents[2] / ".venv-vllm/bin/python"
RUN: Final = "vllm"
TASK: Final = Task(
    name="long",
    reward=(ScorerTerm(scorer="verifier", options={"match": "exact"}),),
    sampling=Sampling(completions=4, max_new_tokens=200),  # untrained, a policy goes on for about a hundred tokens
    target=Target(beta=0.1),
)
PROMPTS: Final = [PromptSpec(text=f"{a}+1=", reference=str(a + 1), key=str(a)) for a in range(32)]
GRACE_SECONDS: Final = 30.0  # to finish what can be finished, and eight of them to leave

pytestmark = pytest.mark.e2e


def options(model: Path, directory: Path, *, steps: int) -> StackOptions:
    assert PYTHON.exists(), f"expected {PYTHON}: `make vllm` creates it"
    batch = {"TBA_GROUPS_PER_BATCH": "4", "TBA_TRAJECTORIES_PER_GROUP": "4", "TBA_MIN_SIZE": "16"}
    batch["TBA_REISSUE_SECONDS"] = "3600"  # what is lost stays lost, for all to see
    return StackOptions(
        directory=directory / "stack",
        model=str(model),
        run_id=RUN,
        generators=1,
        generator_python=str(PYTHON),
        env={
            "tba-buffer": batch,
            "tba-learner": {"TBA_MAX_STEPS": str(steps), "TBA_LEARNING_RATE": "1e-4"},
            "tba-generator": {"TBA_ENGINE": "vllm", "TBA_GRACE_SECONDS": str(GRACE_SECONDS)},
        },
    )


def answered(stack: Stack, orders: int) -> dict[int, Trajectories]:
    """What the scorers have passed on, by order, when it is all there."""
    with contextlib.closing(Reader(stack.kafka_servers, RUN, [TRAJECTORIES.name], {})) as reader:
        found: dict[int, Trajectories] = {}
        deadline = time.monotonic() + 120
        while len(found) < orders:
            assert time.monotonic() < deadline, f"{len(found)} of {orders} orders answered"
            for message in (record.message() for record in reader.poll(1.0)):
                assert isinstance(message, Trajectories)
                found[message.rollout.prompt.issue_id] = message
        return found


def assert_each_order_has_one_answer(stack: Stack) -> int:
    """Return how many orders there were."""
    with psycopg.connect(stack.database_url.replace("postgresql+psycopg", "postgresql")) as connection:
        rows = connection.execute("SELECT completions, stored + duplicates, dead_lettered FROM issues").fetchall()
    assert rows
    assert {(completions - answers, dead) for completions, answers, dead in rows} == {(0, 0)}
    return len(rows)


def test_weights_are_swapped_under_requests_in_flight_and_none_is_lost(tiny_model: Path, tmp_path: Path) -> None:
    with Stack(options(tiny_model, tmp_path, steps=12)) as stack, Client(stack.url, attempts=9) as client:
        client.post_task(TASK, PROMPTS)
        stack.wait_for(stack.learner_is_done, seconds=600, what="the last step")
        client.pause(TASK.name)
        stack.wait_for(lambda: client.status().ledger.in_flight == 0, seconds=120, what="an empty line")
        assert client.status().ledger.balances
        orders = assert_each_order_has_one_answer(stack)
        groups = answered(stack, orders)
        assert stack.restarts()["tba-generator-0"] == 0
    assert len(groups) == orders
    completions = [completion for group in groups.values() for completion in group.rollout.completions]
    swaps = {
        (earlier, later)
        for completion in completions
        for (earlier, _), (later, _) in zip(completion.spans, completion.spans[1:], strict=False)
    }
    assert len(swaps) >= 2
    assert all(sum(tokens for _, tokens in c.spans) == len(c.token_ids) for c in completions if c.spans)
    assert all(c.policy_version == c.spans[0][0] for c in completions if c.spans)


@pytest.fixture
def busy(tiny_model: Path, tmp_path: Path) -> Iterator[tuple[Stack, Client]]:
    """A stack whose one generator has 32 long prompts in flight, and whose learner waits for all of them.

    Before any answer has been seen, four batches of prompts may be in flight.
    """
    asked = options(tiny_model, tmp_path, steps=1)
    asked.env["tba-buffer"].update(TBA_MIN_SIZE="128", TBA_GROUPS_PER_BATCH="8")  # type: ignore[attr-defined]
    with Stack(asked) as stack, Client(stack.url, attempts=9) as client:
        client.post_task(TASK, PROMPTS)
        stack.wait_for(lambda: client.status().ledger.in_flight >= 128, seconds=180, what="32 prompts in flight")
        yield stack, client


def test_a_generator_told_to_stop_finishes_or_hands_back_and_each_group_is_there_once(
    busy: tuple[Stack, Client],
) -> None:
    stack, client = busy
    pid = stack.pids()["tba-generator-0"]
    stack.kill("tba-generator-0", signal.SIGTERM)
    stack.wait_for(lambda: stack.pids().get("tba-generator-0") != pid, seconds=120, what="end of the old generator")
    assert stack.last_exits()["tba-generator-0"] == 0  # in its grace: who overstays it ends with 1
    stack.wait_for(stack.learner_is_done, seconds=600, what="the first step")
    client.pause(TASK.name)
    stack.wait_for(lambda: client.status().ledger.in_flight == 0, seconds=120, what="an empty line")
    assert_each_order_has_one_answer(stack)
    log = (stack.directory / "logs" / "tba-generator-0.log").read_text()
    assert "drained handed_back=" in log
