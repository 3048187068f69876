"""What people look at is kept for a month, what may still be needed for longer; the ledger stands as it was."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Table, func, insert, literal_column, select, update

from services.buffer.request_tables import gradings
from services.buffer.retention import Retention
from services.buffer.scaling_tables import scale_decisions
from services.buffer.tables import dead_letters, issues
from tests.buffer.world import RUN, World

pytestmark = pytest.mark.integration

OLD, YOUNG = (func.now() - literal_column(f"interval '{days} days'") for days in (31, 29))


def add(world: World, table: Table, **values: Any) -> None:
    with world.engine.begin() as connection:
        connection.execute(insert(table).values(run_id=RUN, **values))


def letter(world: World, reason: str, *, at: Any, **values: Any) -> None:
    where = {"topic": "tba.prompts", "partition": 0, "offset": 0, "schema_header": "prompt/1", "body": b""}
    add(world, dead_letters, service="tba-generator", reason=reason, created_at=at, **where, **values)


def decision(world: World, sentence: str, *, at: Any) -> None:
    figures = {"desired": 1, "replicas": 1, "ready": 1, "applied": True}
    add(world, scale_decisions, reason="steady", sentence=sentence, decided_by="here", decided_at=at, **figures)


def left(world: World, column: Any) -> list[Any]:
    """What is left after the ten minutes that it waits."""
    retention = Retention(world.lease, RUN)
    retention.turn(0.0)
    before = world.count(column.table)
    retention.turn(599.0)
    assert world.count(column.table) == before
    retention.turn(600.0)
    with world.reading() as connection:
        return list(connection.scalars(select(column).order_by(column)))


def test_dead_letters_leave_after_a_month_but_not_before_they_are_replayed(world: World) -> None:
    letter(world, "old", at=OLD)
    letter(world, "old, replayed", at=OLD, replay_asked_at=OLD, replayed_at=OLD)
    letter(world, "refused", at=OLD, replay_asked_at=OLD, replay_fault="no")
    letter(world, "young", at=YOUNG)
    assert left(world, dead_letters.c.reason) == ["young"]


def test_a_letter_that_was_asked_for_is_replayed_first(world: World) -> None:
    letter(world, "asked", at=OLD, replay_asked_at=func.now())
    assert left(world, dead_letters.c.reason) == ["asked"]
    running = world.open()
    running.turns(1)
    assert len(world.broker.logs["tba.prompts"]) == 1
    world.now += 600.0
    running.turns(1)
    assert world.count(dead_letters) == 0


def test_gradings_leave_a_month_after_they_were_settled_unless_a_letter_could_bring_them_back(world: World) -> None:
    for issue_id, at in ((1, OLD), (2, YOUNG), (3, None), (4, OLD)):
        add(world, gradings, request={}, issue_id=issue_id, settled_at=at, created_at=OLD)
    letter(world, "late", at=YOUNG, issue_id=4)
    assert left(world, gradings.c.issue_id) == [2, 3, 4]


def test_decisions_leave_after_a_month_except_the_newest(world: World) -> None:
    for sentence, at in (("first", OLD), ("second", OLD)):
        decision(world, sentence, at=at)
    assert left(world, scale_decisions.c.sentence) == ["second"]
    decision(world, "third", at=YOUNG)
    decision(world, "fourth", at=func.now())
    assert left(world, scale_decisions.c.sentence) == ["fourth", "third"]


def test_another_run_keeps_its_own(world: World) -> None:
    letter(world, "mine", at=OLD)
    with world.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO runs (run_id) VALUES ('other')")
        connection.execute(update(dead_letters).values(run_id="other"))
    assert left(world, dead_letters.c.reason) == ["mine"]


def test_the_ledger_balances_as_before(world: World) -> None:
    world.announce(0)
    task_id = world.add_task()
    running = world.open()
    running.turns(2)
    with world.engine.begin() as connection:
        lost = {"state": "settled", "dead_lettered": issues.c.completions, "settled_at": OLD}
        connection.execute(update(issues).where(issues.c.task_id == task_id).values(lost))
        issue_id = connection.scalar(select(func.min(issues.c.issue_id)))
    letter(world, "old", at=OLD, issue_id=issue_id)
    before = world.ledger()
    assert before.dead_lettered > 0
    assert left(world, dead_letters.c.reason) == []
    assert world.ledger() == before
