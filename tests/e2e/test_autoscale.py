"""Generators of one machine come and go: by the law as the learner starves or not, by hand twenty times, to none."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from tba_cli.client import Client
from tba_cli.local.stack import Stack, StackOptions
from tba_cli.up import follow
from tba_common.tasks import PromptSpec, Sampling, ScorerTerm, Target, Task

SIZES: Final = (1, 2, 4, 3) * 5  # twenty changes
MOST: Final = 4
GENERATORS: Final = [f"tba-generator-{index}" for index in range(MOST)]
PROMPTS: Final = [
    PromptSpec(text=f"{a}+{b}=", reference=str(a + b), key=f"{a}+{b}") for a in range(9) for b in range(9)
]
TASK: Final = Task(
    name="sums",
    reward=(ScorerTerm(scorer="verifier", options={"match": "exact"}),),
    sampling=Sampling(completions=4, max_new_tokens=32),
    target=Target(beta=0.1),
)
ENVIRONMENT: Final = {
    # The learner starves until ten thousand completions are there; from then on it has more than it can train on.
    "tba-buffer": {
        "TBA_MIN_SIZE": "10000",
        "TBA_CAPACITY_PER_PROMPT": "200",
        "TBA_GROUPS_PER_BATCH": "32",
        "TBA_SAMPLES_PER_INSERT": "64",
        "TBA_REISSUE_SECONDS": "3600",  # what is lost stays lost, for all to see
    },
    # Its steps are long, and hardly anything is between them.
    "tba-learner": {"TBA_PUBLISH_EVERY": "1000", "TBA_CHECKPOINT_EVERY": "1000"},
    "tba-autoscaler": {
        "TBA_INTERVAL_SECONDS": "0.5",
        "TBA_SETTLE_SECONDS": "3",
        "TBA_DOWN_AFTER_SECONDS": "2",
        "TBA_ZERO_AFTER_SECONDS": "1",
    },
}
MORE: Final = 50  # completions that must come back between two changes
PATIENCE_SECONDS: Final = 240.0

pytestmark = pytest.mark.e2e


@pytest.fixture
def stack(tiny_model: Path, tmp_path: Path) -> Iterator[Stack]:
    options = StackOptions(
        directory=tmp_path / "stack", model=str(tiny_model), run_id="autoscale", autoscale=(1, MOST), env=ENVIRONMENT
    )
    with Stack(options) as stack:
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.url) as client:
        yield client


def test_generators_come_and_go_and_no_prompt_is_lost(stack: Stack, client: Client) -> None:
    client.post_task(TASK, PROMPTS)
    assert stack.generators.reading == 1
    goes_up_when_the_learner_starves(stack, client)
    goes_down_when_it_does_not(stack, client)
    stack.supervisor.park("tba-learner")  # its long steps would only slow down what follows
    changes_to(stack, client, SIZES[-1])  # the law may have gone down to the first of the sizes by itself
    changes = sum(changes_to(stack, client, size) for size in SIZES)
    assert changes == len(SIZES)

    client.clear_override()
    client.pause(TASK.name)
    wait_for_size(stack, client, 0)
    assert client.autoscaler().decisions[0].reason == "no_task"
    ledger = client.status().ledger
    assert (ledger.in_flight, ledger.expired, ledger.dead_lettered) == (0, 0, 0)
    assert ledger.balances
    assert ledger.issued == ledger.stored + ledger.duplicates > MORE * len(SIZES)
    assert client.status().queues.dead_letters == 0
    assert {stack.last_exits()[name] for name in GENERATORS} == {0}


def goes_up_when_the_learner_starves(stack: Stack, client: Client) -> None:
    def has_grown() -> bool:
        follow(client, stack.generators)
        return running(stack) == stack.generators.reading > 1

    stack.wait_for(has_grown, seconds=PATIENCE_SECONDS, what="a second generator for a learner that waits")
    assert {"starving", "demand"} & {decision.reason for decision in client.autoscaler().decisions}


def goes_down_when_it_does_not(stack: Stack, client: Client) -> None:
    changes_to(stack, client, MOST)
    target = client.status().step + 2
    stack.wait_for(lambda: client.status().step >= target, seconds=PATIENCE_SECONDS, what=f"step {target}")
    client.clear_override()

    reasons: list[str] = []

    def has_shrunk() -> bool:
        follow(client, stack.generators)
        newest = [decision.reason for decision in client.autoscaler().decisions]
        reasons.extend(itertools.takewhile(lambda reason: reason != "override", newest))
        return running(stack) == stack.generators.reading < MOST

    stack.wait_for(has_shrunk, seconds=PATIENCE_SECONDS, what="fewer generators for a learner that has enough")
    assert "surplus" in reasons


def changes_to(stack: Stack, client: Client, size: int) -> bool:
    """Ask for a number of generators; return whether processes came or went until there were as many, all at work."""
    before = running(stack)
    client.override_autoscaler(size, datetime.now(UTC) + timedelta(minutes=10))
    wait_for_size(stack, client, size, more=MORE)
    return before != size


def wait_for_size(stack: Stack, client: Client, size: int, *, more: int = 0) -> None:
    """Wait until so many processes run and share the prompts, and `more` completions have come back."""
    target = returned(client) + more

    def is_there() -> bool:
        follow(client, stack.generators)
        return running(stack) == stack.generators.reading == size and returned(client) >= target

    what = f"{size} generators and {more} completions more"
    stack.wait_for(is_there, seconds=PATIENCE_SECONDS, what=what)


def returned(client: Client) -> int:
    ledger = client.status().ledger
    return ledger.stored + ledger.duplicates


def running(stack: Stack) -> int:
    return len(stack.pids().keys() & set(GENERATORS))
