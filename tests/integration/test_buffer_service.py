"""The turn as a whole: what the buffer says of itself, what a pause means, what a restart brings back."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update

from services.buffer.lease import Lease, LeaseLostError
from services.buffer.tables import runs, tasks
from tests.buffer.world import Running, World

pytestmark = pytest.mark.integration


def turn_and_status(world: World, running: Running) -> dict[str, Any]:
    """Make a turn after a second has passed; return what the buffer says."""
    world.now += 1.0
    running.turns(1)
    with world.reading() as connection:
        return dict(connection.execute(select(runs.c.status)).scalar_one())


def test_the_status_says_why_no_batch_is_drawn(world: World) -> None:
    task_id = world.add_task(train=4)
    running = world.open(min_size=16, samples_per_insert=0.5)
    assert turn_and_status(world, running)["blocked"] == "min_size"
    world.announce(0)
    running.turns(2)
    first = world.broker.prompts()
    for order in first[:3]:
        world.answer(order, tokens=[[1], [1], [1], [1]])
    world.answer(first[3])
    assert turn_and_status(world, running)["blocked"] == "not_ready"
    world.answer_all(start=4)
    running.turns(2)
    assert turn_and_status(world, running)["blocked"] == "in_flight"
    world.report(1)
    world.report(2)
    status = turn_and_status(world, running)
    assert status["blocked"] == "ratio"
    assert status["in_flight"] == {str(task_id): 4}
    world.announce(9)
    assert turn_and_status(world, running)["blocked"] == "stale"


def test_the_status_holds_the_figures_of_the_line(world: World) -> None:
    world.add_task(train=4)
    world.announce(0)
    running = world.open()
    running.turns(2)
    world.answer_all()
    status = turn_and_status(world, running)
    assert (status["trajectories"], status["ready_prompts"], status["online_prompts"]) == (16, 4, 4)
    assert (status["inserts"], status["samples"], status["untrained_batches"]) == (16, 16, 2)
    assert status["trajectories_per_minute"] == 16
    assert sum(status["staleness"].values()) == 16
    assert sum(status["kinds"].values()) == 4
    world.report(1)
    assert turn_and_status(world, running)["steps_per_minute"] == 1


def test_a_ratio_that_holds_the_learner_back_does_not_hold_back_the_feed(world: World) -> None:
    world.add_task(train=4)
    world.announce(0)
    running = world.open(samples_per_insert=0.25, max_staleness_versions=1)
    done = 0
    for number in range(1, 30):
        running.turns(1)
        done = world.answer_all(start=done)
        world.report(number)
    assert len({g.batch_id for g in world.broker.groups()}) > 3


def test_a_paused_task_is_neither_ordered_nor_drawn(world: World) -> None:
    first, second = world.add_task(train=4), world.add_task(train=4, name="other")
    world.announce(0)
    running = world.open(groups_per_batch=2)
    running.turns(2)
    with world.engine.begin() as connection:
        connection.execute(update(tasks).where(tasks.c.task_id == first).values(state="paused"))
    world.answer_all()
    world.now += 1.0
    running.turns(1)
    before = len(world.broker.groups())
    for number in range(1, 8):
        world.report(number)
        running.turns(1)
    assert {group.task_id for group in world.broker.groups()[before:]} == {second}
    assert world.ledger().stored >= 32


def test_a_restart_brings_back_the_index_the_decks_and_the_backlog(world: World) -> None:
    world.add_task(train=4)
    world.announce(0)
    running = world.open(capacity_per_prompt=6)
    done = 0
    for number in range(1, 5):
        running.turns(2)
        done = world.answer_all(start=done, version=number % 3)
        world.report(number)
    running.turns(1)
    before, after = running.buffer, world.open(capacity_per_prompt=6).buffer
    after._index.activate(before._index._active)
    assert (after._index.size, after._index.version, after._index.newest) == (
        before._index.size,
        before._index.version,
        before._index.newest,
    )
    assert after._index.ready == before._index.ready
    assert after._index.online_ready == before._index.online_ready
    for prompt_id in before._index.ready:
        assert after._index.eligible(prompt_id).tolist() == before._index.eligible(prompt_id).tolist()
    assert (after._inserts, after.offsets) == (before._inserts, before.offsets | after.offsets)
    assert after._backlog.count(after._index.ready) <= before._backlog.count(before._index.ready)


def test_a_buffer_that_lost_its_lease_stops_before_it_writes(world: World) -> None:
    world.add_task(train=2)
    world.announce(0)
    zombie = world.open()
    zombie.turns(2)
    with world.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE leases SET expires_at = now() - interval '1 second'")
    successor = Lease(world.engine, "buffer/test", "two")
    assert successor.acquire()
    world.answer_all()
    with pytest.raises(LeaseLostError):
        zombie.turns(1)
    world.lease = successor
    world.open().turns(1)
    assert world.ledger().stored == 8
