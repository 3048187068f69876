"""One active buffer per run, whatever the others believe."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Engine, create_engine, func, select, update

from services.buffer.lease import Lease, LeaseLostError
from services.buffer.restore import ensure_run
from services.buffer.state_tables import leases
from services.buffer.tables import runs

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def long_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """None expires but by `expire`, however long the machine stalls."""
    monkeypatch.setattr("services.buffer.lease.LEASE_SECONDS", 3_600.0)


@pytest.fixture
def engine(migrated: str) -> Iterator[Engine]:
    engine = create_engine(migrated)
    with engine.begin() as connection:
        ensure_run(connection, "test")
    yield engine
    engine.dispose()


def expire(engine: Engine) -> None:
    """Let the time pass that a dead holder needs to be noticed."""
    with engine.begin() as connection:
        connection.execute(update(leases).values(expires_at=func.now() - timedelta(seconds=1)))


def write_step(lease: Lease, step: int) -> None:
    with lease.transaction() as connection:
        connection.execute(update(runs).values(step=step))


def step_of(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(select(runs.c.step)).scalar_one())


def test_a_standby_waits_while_the_lease_is_held(engine: Engine) -> None:
    first, second = Lease(engine, "b", "one"), Lease(engine, "b", "two")
    assert first.acquire()
    assert not second.acquire()
    first.renew()
    assert not second.acquire()


def test_an_expired_lease_is_taken_over_and_a_zombie_cannot_commit(engine: Engine) -> None:
    zombie, successor = Lease(engine, "b", "one"), Lease(engine, "b", "two")
    assert zombie.acquire()
    write_step(zombie, 1)
    expire(engine)
    assert successor.acquire()
    assert successor.epoch == zombie.epoch + 1
    with pytest.raises(LeaseLostError, match="epoch 1 of one is over"):
        write_step(zombie, 99)
    with pytest.raises(LeaseLostError):
        zombie.renew()
    write_step(successor, 2)
    assert step_of(engine) == 2


def test_a_standby_does_not_wait_for_a_commit_that_is_under_way(engine: Engine) -> None:
    slow, successor = Lease(engine, "b", "one"), Lease(engine, "b", "two")
    assert slow.acquire()
    expire(engine)
    with slow.transaction() as connection:
        connection.execute(update(runs).values(step=7))
        assert not successor.acquire()
    assert step_of(engine) == 7
    assert successor.acquire()


def test_a_released_lease_is_free_at_once(engine: Engine) -> None:
    first, second = Lease(engine, "b", "one"), Lease(engine, "b", "two")
    assert first.acquire()
    first.release()
    assert second.acquire()
    with pytest.raises(LeaseLostError):
        write_step(first, 1)


def test_runs_do_not_wait_for_one_another(engine: Engine) -> None:
    assert Lease(engine, "buffer/a", "one").acquire()
    assert Lease(engine, "buffer/b", "one").acquire()
