"""Generators of one machine that come and go: by the law when the learner starves, by hand twenty times, to none."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from tba_cli.client import Client
from tba_cli.local.stack import Stack, StackOptions
from tba_cli.up import follow
from tba_common.tasks import PromptSpec, Sampling, ScorerTerm, Target, Task

SIZES: Final = (1, 3, 2, 1, 2) * 4  # twenty changes: the last of a round is not the first of the next
PROMPTS: Final = [
    PromptSpec(text=f"{a}+{b}=", reference=str(a + b), key=f"{a}+{b}") for a in range(9) for b in range(9)
]
TASK: Final = Task(
    name="sums",
    reward=(ScorerTerm(scorer="verifier", options={"match": "exact"}),),
    sampling=Sampling(completions=4, max_new_tokens=4),
    target=Target(beta=0.1),
)
ENVIRONMENT: Final = {
    "tba-buffer": {"TBA_MIN_SIZE": "1000000"},  # the learner starves for ever
    "tba-autoscaler": {
        "TBA_INTERVAL_SECONDS": "0.5",
        "TBA_SETTLE_SECONDS": "1",
        "TBA_ZERO_AFTER_SECONDS": "1",
    },
}
MORE: Final = 40  # completions that must come back between two changes

pytestmark = pytest.mark.e2e


@pytest.fixture
def stack(tiny_model: Path, tmp_path: Path) -> Iterator[Stack]:
    options = StackOptions(
        directory=tmp_path / "stack", model=str(tiny_model), run_id="autoscale", autoscale=(1, 3), env=ENVIRONMENT
    )
    with Stack(options) as stack:
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.url) as client:
        yield client


def stored(client: Client) -> int:
    ledger = client.status().ledger
    return ledger.stored + ledger.duplicates


def test_generators_come_and_go_and_no_prompt_is_lost(stack: Stack, client: Client) -> None:
    pool = stack.generators

    def reaches(size: int) -> bool:
        follow(client, pool)
        return pool.reading == size

    client.post_task(TASK, PROMPTS)
    assert pool.reading == 1
    stack.wait_for(
        lambda: reaches(2) or pool.reading > 2, seconds=60, what="a second generator for a learner that waits"
    )
    assert {"starving", "demand"} & {decision.reason for decision in client.autoscaler().decisions}

    events = 0
    for size in SIZES:
        client.override_autoscaler(size, datetime.now(UTC) + timedelta(minutes=10))
        before, wanted = stored(client), pool.wanted
        stack.wait_for(
            lambda size=size, before=before: (  # type: ignore[misc]
                (reaches(size) or pool.wanted == size) and stored(client) >= before + MORE
            ),
            seconds=60,
            what=f"{MORE} completions with {size} generators wanted",
        )
        events += pool.wanted != wanted
    assert events == len(SIZES)

    client.clear_override()
    client.pause(TASK.name)
    stack.wait_for(lambda: reaches(0), seconds=60, what="no generator without a task")
    ledger = client.status().ledger
    assert (ledger.in_flight, ledger.expired, ledger.dead_lettered) == (0, 0, 0)
    assert ledger.balances
    assert ledger.issued == ledger.stored + ledger.duplicates
    assert not [name for name in stack.pids() if name.startswith("tba-generator")]
