"""Replace every process of a running line in the order of an upgrade: nothing is lost, doubled, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import create_engine, text

from services.buffer.ledger import check
from tba_cli.client import Client
from tba_cli.local.stack import Stack, StackOptions
from tba_common.tasks import PromptSpec, Sampling, ScorerTerm, Target, Task
from tests.e2e.rolling import Front, Load, Rollout

RUN: Final = "upgrade"
GENERATOR, LEARNER = "tba-generator-0", "tba-learner"
ORDER: Final = ("tba-api", "tba-buffer", "tba-reward-verifier-0", GENERATOR, LEARNER)
PROMPTS: Final = [
    PromptSpec(text=f"{a}+{b}=", reference=str(a + b), key=f"{a}+{b}") for a in range(10) for b in range(10)
]
TASK: Final = Task(
    name="sums",
    reward=(ScorerTerm(scorer="verifier", options={"match": "regex", "pattern": r"\d"}),),
    sampling=Sampling(completions=4, max_new_tokens=4),
    target=Target(beta=0.1),
)
ENVIRONMENT: Final = {
    "tba-buffer": {
        "TBA_GROUPS_PER_BATCH": "4",
        "TBA_TRAJECTORIES_PER_GROUP": "4",
        "TBA_MIN_SIZE": "32",
        "TBA_SAMPLES_PER_INSERT": "1",
        "TBA_REISSUE_SECONDS": "3600",  # what is lost stays lost, for all to see
    },
    # The one checkpoint is the one that a learner writes when it is told to end.
    "tba-learner": {"TBA_CHECKPOINT_EVERY": "1000000", "TBA_PUBLISH_EVERY": "5", "TBA_LEARNING_RATE": "1e-4"},
}
STEPS_BETWEEN: Final = 2
STEP: Final = "SELECT coalesce(max(step), 0) FROM steps"

pytestmark = pytest.mark.e2e


@pytest.fixture
def stack(tiny_model: Path, tmp_path: Path) -> Iterator[Stack]:
    options = StackOptions(
        directory=tmp_path / "stack", model=str(tiny_model), run_id=RUN, generators=1, env=ENVIRONMENT
    )
    with Stack(options) as stack:
        yield stack


def test_every_process_is_replaced_under_load_and_nothing_is_lost_doubled_or_refused(stack: Stack) -> None:
    with Front(stack.options.api_port) as front, ExitStack() as held:
        with Client(front.url) as client:
            client.post_task(TASK, PROMPTS)
        rollout, load = Rollout(stack, front, held), Load(front.url, TASK.name)
        with load.running():
            wait_for_steps(stack)
            rollout.start("migrate")
            for name in ORDER:
                replace(rollout, stack, name)
        run_empty(stack, front.url)
        assert load.failures == []
        assert load.posted > len(ORDER)
        held.close()
        assert_clean_exits(stack, rollout)
    assert_nothing_lost_or_doubled(stack, len(PROMPTS) + load.posted)


def replace(rollout: Rollout, stack: Stack, name: str) -> None:
    """Replace one process; the line goes on with the new one, from where the old one stood."""
    step, version = one(stack, STEP), one(stack, "SELECT policy_version FROM runs")
    rollout.replace(name)
    if name == GENERATOR:
        first, *_ = rollout.logged(name, "weights loaded", "policy_version")
        assert first >= version > 0  # stale ones serve nobody, not even first
    if name == LEARNER:
        (resumed,) = rollout.logged(name, ": resumed", "step")
        assert resumed >= step > 0
    wait_for_steps(stack)


def wait_for_steps(stack: Stack) -> None:
    target = one(stack, STEP) + STEPS_BETWEEN
    stack.wait_for(lambda: one(stack, STEP) >= target, seconds=180, what=f"step {target}")


def run_empty(stack: Stack, url: str) -> None:
    """Let every prompt be ordered once, and every order come back."""
    unordered = "SELECT count(*) FROM prompts WHERE issues = 0"
    stack.wait_for(lambda: one(stack, unordered) == 0, seconds=180, what="order of every prompt")
    with Client(url) as client:
        client.pause(TASK.name)
        stack.wait_for(lambda: client.status().ledger.in_flight == 0, seconds=180, what="empty line")


def assert_clean_exits(stack: Stack, rollout: Rollout) -> None:
    old = {name: stack.last_exits()[name] for name in ORDER}
    new = {name: supervisor.last_exits()[name] for name, supervisor in rollout.new.items()}
    assert old == dict.fromkeys(ORDER, 0)
    assert new == dict.fromkeys(("migrate", *ORDER), 0)
    assert not any(supervisor.restarts()[name] for name, supervisor in rollout.new.items())


def one(stack: Stack, query: str) -> Any:
    engine = create_engine(stack.database_url)
    with engine.connect() as connection:
        value = connection.execute(text(query)).scalar_one()
    engine.dispose()
    return value


def assert_nothing_lost_or_doubled(stack: Stack, posted: int) -> None:
    engine = create_engine(stack.database_url)
    with engine.connect() as connection:
        assert check(connection, RUN) == []
    engine.dispose()
    assert one(stack, "SELECT count(*) FROM prompts") == posted
    # Each order was answered as it was sent: none had to be sent again, none was given up or refused.
    assert one(stack, "SELECT count(*) FROM issues WHERE attempt > 1 OR expired > 0 OR dead_lettered > 0") == 0
    assert one(stack, "SELECT count(*) FROM issues WHERE state <> 'settled'") == 0
    assert one(stack, "SELECT sum(completions) - sum(stored + duplicates) FROM issues") == 0
    assert one(stack, "SELECT count(*) FROM dead_letters") == 0
    assert one(stack, "SELECT count(*) - count(DISTINCT (prompt_id, fingerprint)) FROM trajectories") == 0
    # One report of each step, each of the batch of its number, and each batch trained.
    assert one(stack, "SELECT min(step) = 1 AND max(step) = count(*) FROM steps")
    assert one(stack, "SELECT bool_and(step = batch_id) FROM steps")
    assert one(stack, "SELECT epoch FROM leases") == 2
