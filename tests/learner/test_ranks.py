"""Two ranks on CPU: whichever is gone or hangs while the leader waits for work, the other ends and says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tba_cli.local.ports import free_ports

pytestmark = pytest.mark.integration

RANK = """
from datetime import timedelta
from services.learner import ranks
ranks._SILENCE = timedelta(seconds=10)  # more than a busy machine makes one wait
mine = ranks.Ranks.join()
mine.agree(0)
print("met", flush=True)
while mine.leads:
    mine.call_roll()
mine.receive()
"""

Pair = list[subprocess.Popen[str]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Leader and follower, who have met, as on two nodes: no torchrun sees how both fare."""
    environment = os.environ | {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_ports(1)[0]),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    with ExitStack() as stack:
        pair: Pair = []
        for rank in range(2):
            process = subprocess.Popen(
                [sys.executable, "-c", RANK],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            pair.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in pair:
            assert process.stdout is not None
            assert process.stdout.readline() == "met\n"
        yield pair


@pytest.mark.parametrize(
    ("victim", "number"),
    [
        pytest.param(1, signal.SIGKILL, id="the follower dies"),
        pytest.param(1, signal.SIGSTOP, id="the follower hangs"),
        pytest.param(0, signal.SIGKILL, id="the leader dies"),
    ],
)
def test_a_rank_that_waits_for_the_other_fails_when_it_is_gone(pair: Pair, victim: int, number: signal.Signals) -> None:
    pair[victim].send_signal(number)
    survivor = pair[1 - victim]
    _, errors = survivor.communicate(timeout=180)
    assert survivor.returncode == 1
    assert f"[rank{1 - victim}]: RuntimeError: " in errors
