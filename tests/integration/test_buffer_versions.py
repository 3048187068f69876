"""Two versions of the platform beside each other: what is too new for this buffer waits or is set aside, never lost."""

from __future__ import annotations

from typing import Any, cast

import pytest
from sqlalchemy import func, insert, select, update

from services.buffer.service import Buffer
from services.buffer.tables import dead_letters, steps, tasks
from tba_common import topics
from tba_common.delivery import DeadLetters
from tba_common.kafka import Producer
from tba_common.messages import Message, Step, Trajectories
from tests.buffer.world import RUN, FakeReader, Running, World, add_prompts, task

pytestmark = pytest.mark.integration


@pytest.fixture
def world(world: World) -> World:
    """One in which the first version is announced."""
    world.announce(0)
    return world


@pytest.fixture
def running(world: World) -> Running:
    """A buffer whose dead letters are on the wire, where it reads them."""
    rejects = DeadLetters(cast(Producer, world.broker), RUN, "tba-buffer")
    buffer = Buffer(world.settings(), world.lease, world.broker, rejects, clock=lambda: world.now)
    return Running(buffer, FakeReader(world.broker, buffer.offsets))


def store_task(world: World, name: str, spec: dict[str, Any]) -> int:
    with world.engine.begin() as connection:
        row = insert(tasks).values(run_id=RUN, name=name, spec=task(name=name).model_dump(mode="json") | spec)
        task_id = int(connection.execute(row.returning(tasks.c.task_id)).scalar_one())
        add_prompts(connection, task_id, 2, "train")
    return task_id


def newer(monkeypatch: pytest.MonkeyPatch, message: type[Message]) -> None:
    """From now on processes are of a version whose schema of `message` is the next one."""
    monkeypatch.setattr(message, "schema_version", message.schema_version + 1)


def letters(world: World) -> list[tuple[str, str]]:
    with world.reading() as connection:
        return [(row.topic, row.schema_header) for row in connection.execute(select(dead_letters))]


def turns(world: World, running: Running) -> None:
    for _ in range(3):
        world.now += 1.1
        running.turns(1)


def test_a_task_with_fields_of_a_newer_version_waits_for_it_and_the_others_are_served(
    world: World, running: Running
) -> None:
    ours = store_task(world, "ours", {})
    theirs = store_task(world, "newer", {"added_tomorrow": {"changes": "everything"}})
    turns(world, running)
    assert {order.task_id for order in world.broker.prompts()} == {ours}
    with world.engine.begin() as connection:  # the newer version is back, whose task it is
        spec = task(name="newer").model_dump(mode="json")
        connection.execute(update(tasks).where(tasks.c.task_id == theirs).values(spec=spec))
    turns(world, running)
    assert {order.task_id for order in world.broker.prompts()} == {ours, theirs}


def test_an_answer_that_is_too_new_is_set_aside_and_its_prompt_is_ordered_again(
    world: World, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_task(world, "sums", {})
    turns(world, running)
    orders = world.broker.prompts()
    with monkeypatch.context() as there:
        newer(there, Trajectories)
        world.answer_all()
    turns(world, running)
    assert letters(world) == [("tba.trajectories", f"trajectories/{Trajectories.schema_version + 1}")] * len(orders)
    assert (world.ledger().stored, world.ledger().in_flight) == (0, 4 * len(orders))
    world.now += 10_000
    turns(world, running)
    again = world.broker.prompts()[len(orders) : 2 * len(orders)]
    assert [(order.issue_id, order.attempt) for order in again] == [(order.issue_id, 2) for order in orders]
    world.answer_all(start=len(orders))
    turns(world, running)
    assert world.ledger().stored >= 4 * len(orders)


def test_a_report_that_is_too_new_is_kept_whole_and_a_replay_gives_it_to_the_newer_version(
    world: World, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_task(world, "sums", {})
    turns(world, running)
    world.answer_all()
    turns(world, running)
    assert world.broker.groups()
    newer(monkeypatch, Step)
    world.report(1)
    monkeypatch.undo()
    turns(world, running)
    assert letters(world) == [("tba.steps", f"step/{Step.schema_version + 1}")]
    assert world.count(steps) == 0
    newer(monkeypatch, Step)
    with world.engine.begin() as connection:
        connection.execute(update(dead_letters).values(replay_asked_at=func.now()))
    turns(world, running)
    with world.reading() as connection:
        assert connection.execute(select(steps.c.step)).scalars().all() == [1]
    assert len(world.broker.logs[topics.STEPS.name]) == 2
