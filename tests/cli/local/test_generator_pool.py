"""Processes that come and go under a supervisor, and the count that tells them how many share the work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tba_cli.local.generator_pool import GeneratorPool
from tba_cli.local.process import ProcessSpec
from tba_cli.local.supervisor import Supervisor
from tests.cli.local.processes import FOR_EVER, python, wait_until

pytestmark = pytest.mark.integration
NAMES = ["g-0", "g-1", "g-2"]


def specs(directory: Path) -> list[ProcessSpec]:
    def spec(name: str) -> ProcessSpec:
        mark = directory / f"{name}.ready"
        return ProcessSpec(name=name, command=python(FOR_EVER), ready=mark.exists, parked=name != "g-0")

    (directory / "g-0.ready").touch()
    return [spec(name) for name in NAMES]


def test_one_that_comes_shares_the_work_from_when_it_is_ready(tmp_path: Path) -> None:
    count = tmp_path / "count"
    with Supervisor(specs(tmp_path), tmp_path) as supervisor:
        assert set(supervisor.pids()) == {"g-0"}
        pool = GeneratorPool(supervisor, NAMES, count, running=1)
        pool.scale(3)
        pool.turn()
        wait_until(lambda: set(supervisor.pids()) == set(NAMES))
        pool.turn()
        assert (pool.reading, count.read_text()) == (1, "1")
        (tmp_path / "g-2.ready").touch()  # its turn comes after that of the one before it
        pool.turn()
        assert pool.reading == 1
        (tmp_path / "g-1.ready").touch()
        pool.turn()
        assert (pool.reading, count.read_text()) == (3, "3")


def test_one_that_goes_has_ended_before_the_others_take_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    for name in NAMES:
        (tmp_path / f"{name}.ready").touch()
    with Supervisor(specs(tmp_path), tmp_path) as supervisor:
        pool = GeneratorPool(supervisor, NAMES, count, running=1)
        pool.scale(99)  # not more than there may be
        pool.turn()
        wait_until(lambda: set(supervisor.pids()) == set(NAMES))
        pool.turn()
        assert pool.reading == 3
        pool.scale(1)
        with monkeypatch.context() as there:
            there.setattr(supervisor, "park", lambda name: None)  # they take their time to end
            pool.turn()
        assert (pool.reading, count.read_text()) == (3, "3")
        pool.turn()
        wait_until(lambda: set(supervisor.pids()) == {"g-0"})
        pool.turn()
        assert (pool.reading, count.read_text()) == (1, "1")
        assert supervisor.restarts()["g-0"] == 0


def test_a_parked_process_is_not_started_again_and_one_that_is_wanted_back_is(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.ready").touch()
    with Supervisor(specs(tmp_path), tmp_path) as supervisor:
        supervisor.park("g-0")
        wait_until(lambda: not supervisor.pids())
        assert supervisor.is_parked("g-0")
        assert not supervisor.is_ready("g-0")
        supervisor.resume("g-0")
        wait_until(lambda: supervisor.is_ready("g-0"))
