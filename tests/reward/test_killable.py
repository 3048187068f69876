"""What hangs is killed, what dies is survived, and the next evaluation never notices."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import pytest

from services.reward.killable import EvaluationFailed, Killable

pytestmark = pytest.mark.integration

LIMIT_SECONDS = 4.0  # more than a busy machine makes anybody wait
#: 9 ** n inside one C call: for ever when n is large, and deaf to SIGTERM meanwhile.
power_of_nine = partial(pow, 9)
FOR_EVER = 10**9
#: Python code. One that dies at once may be taken for one that died without work, which breaks the pool.
DIE_IN_A_MOMENT = "[__import__('time').sleep(0.15), __import__('os')._exit(3)]"


@pytest.fixture(scope="module")
def killable() -> Iterator[Killable]:
    with Killable(processes=1, time_limit_seconds=LIMIT_SECONDS, recycle_after=50, warm_up=bytes) as pool:
        pool.map(math.sqrt, [4])
        yield pool


def worker_pid(pool: Killable) -> int:
    return int(pool.map(os.readlink, ["/proc/self"])[0])


def is_known(pid: int) -> bool:
    """Whether the kernel has a process of this number, a zombie included."""
    return Path(f"/proc/{pid}").exists()


def test_results_come_in_order(killable: Killable) -> None:
    assert killable.map(math.sqrt, [9, 4, 16]) == [3, 2, 4]


def test_what_the_function_raises_is_raised_here(killable: Killable) -> None:
    with pytest.raises(ValueError, match="domain"):
        killable.map(math.sqrt, [9, -1])


def test_a_hanging_item_is_named_and_the_next_call_works(killable: Killable) -> None:
    with pytest.raises(EvaluationFailed, match=r"^exceeded 4 s$") as failure:
        killable.map(power_of_nine, [1, 2, FOR_EVER, 3])
    assert failure.value.index == 2
    assert killable.map(power_of_nine, [2]) == [81]


def test_a_dying_process_is_survived_and_its_killer_is_named(killable: Killable) -> None:
    with pytest.raises(EvaluationFailed, match=r"^died with exit code 3$") as failure:
        killable.map(eval, ["1", DIE_IN_A_MOMENT, "2"])
    assert failure.value.index == 1
    assert killable.map(math.sqrt, [4]) == [2]


def test_a_group_that_is_slow_only_as_a_whole_gets_its_results(killable: Killable) -> None:
    naps = [LIMIT_SECONDS * 0.4] * 3
    assert killable.map(time.sleep, naps) == [None, None, None]


def test_a_process_that_dies_without_work_is_nobody_s_fault_and_crashes_the_service() -> None:
    with Killable(processes=1, time_limit_seconds=60, recycle_after=50, warm_up=bytes) as pool:
        os.kill(worker_pid(pool), signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            pool.map(math.sqrt, [4])


def test_a_warm_up_that_fails_is_told_at_once() -> None:
    broken = partial(int, "not a number")
    with (
        Killable(processes=1, time_limit_seconds=60, recycle_after=50, warm_up=broken) as pool,
        pytest.raises(BrokenProcessPool),
    ):
        pool.map(math.sqrt, [4])


def test_worker_processes_are_replaced_after_their_share_of_work() -> None:
    with Killable(processes=1, time_limit_seconds=60, recycle_after=2, warm_up=bytes) as pool:
        pids = [worker_pid(pool) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_neither_worker_processes_nor_zombies_are_left() -> None:
    with Killable(processes=1, time_limit_seconds=LIMIT_SECONDS, recycle_after=50, warm_up=bytes) as pool:
        pids = [worker_pid(pool)]
        with pytest.raises(EvaluationFailed):
            pool.map(eval, [DIE_IN_A_MOMENT])
        pids.append(worker_pid(pool))
        assert [is_known(pid) for pid in pids] == [False, True]
    assert [is_known(pid) for pid in pids] == [False, False]
