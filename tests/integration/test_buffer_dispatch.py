"""Batches: recorded, then sent, two at a time; sent again as recorded when the learner or the broker lost them."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import func, select, update

from services.buffer.tables import batches, draws, payloads, runs, steps, tasks, trajectories
from tba_common import topics
from tba_common.messages import Group, Resumed
from tests.buffer.world import RUN, Running, World, step

pytestmark = pytest.mark.integration


def started(world: World, *, train: int = 4, reward: object = ({"scorer": "verifier"},), **settings: object) -> Running:
    """A run whose first answers are stored, so that batches flow."""
    world.add_task(train=train, reward=reward)
    world.announce(0)
    running = world.open(**settings)
    running.turns(2)
    world.answer_all()
    running.turns(1)
    return running


def sent(world: World) -> list[int]:
    """The numbers of the batches that were sent, a repeat each time it was."""
    return [group.batch_id for group in world.broker.groups() if group.index == 0]


def content(groups: list[Group]) -> list[object]:
    return [(g.batch_id, g.index, g.prompt_id, g.kind, [d.trajectory_id for d in g.draws]) for g in groups]


def test_two_batches_are_in_flight_and_a_step_makes_room_for_one(world: World) -> None:
    running = started(world)
    running.turns(3)
    assert sent(world) == [1, 2]
    world.report(1)
    running.turns(3)
    assert sent(world) == [1, 2, 3]


def test_a_group_carries_what_the_learner_needs(world: World) -> None:
    started(world)
    groups = world.broker.groups()[:2]
    assert [(g.batch_id, g.index, g.size, g.task_step) for g in groups] == [(1, 0, 2, 0), (1, 1, 2, 0)]
    assert world.broker.groups()[2].task_step == 1
    group = groups[0]
    assert group.prompt_token_ids.tolist() == [group.prompt_id, 1]
    assert (group.temperature, group.target.beta, len(group.draws)) == (1.0, 0.05, 4)
    assert np.exp([d.draw_logprob for d in group.draws]) == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1], abs=0.5)
    with world.reading() as connection:
        for draw in group.draws:
            row = connection.execute(select(trajectories).where(trajectories.c.trajectory_id == draw.trajectory_id))
            stored = row.one()
            assert (stored.prompt_id, stored.reward, stored.policy_version) == (group.prompt_id, draw.reward, 0)
            payload = select(payloads.c.token_ids).where(payloads.c.trajectory_id == draw.trajectory_id)
            assert np.frombuffer(connection.execute(payload).scalar_one(), "<i4").tolist() == draw.token_ids.tolist()


def test_a_draw_is_recorded_with_why_it_was_drawn(world: World) -> None:
    started(world)
    with world.reading() as connection:
        batch = connection.execute(select(batches).where(batches.c.batch_id == 1)).one()
        rows = connection.execute(select(draws).where(draws.c.batch_id == 1)).all()
    assert set(batch.groups[0]) == {
        "prompt_id",
        "task_id",
        "task_step",
        "kind",
        "available",
        "distinct",
        "kappa",
        "log_normalizer",
        "prompt_logprob",
    }
    assert (batch.policy_version, batch.groups[0]["available"], batch.groups[0]["kappa"]) == (0, 4, None)
    assert batch.sent_at is not None
    assert len(rows) == 8
    assert all(row.marginal_logprob < 0 for row in rows)
    assert sorted(row.position for row in rows if row.group_index == 1) == [0, 1, 2, 3]


def test_an_overdue_batch_is_sent_again_as_it_was(world: World) -> None:
    running = started(world, reissue_seconds=60)
    first = content(world.broker.groups())
    world.now += 61.0
    running.turns(1)
    assert sent(world) == [1, 2, 1, 2]
    assert content(world.broker.groups())[len(first) :] == first


def test_the_wait_doubles_while_the_learner_says_nothing(world: World) -> None:
    running = started(world, reissue_seconds=60)
    repeats = []
    for _ in range(10):
        world.now += 61.0
        running.turns(1)
        repeats.append(len(sent(world)))
    assert repeats == [4, 4, 6, 6, 6, 6, 8, 8, 8, 8]


def test_a_duplicate_after_a_refresh_does_not_change_what_is_sent_again(world: World) -> None:
    running = started(world, train=2, reissue_seconds=60)
    first = world.broker.groups()[0].draws
    with world.engine.begin() as connection:
        connection.execute(update(trajectories).values(reward=9.0, policy_version=3))
    world.now += 61.0
    running.turns(1)
    again = world.broker.groups()[4].draws
    assert [(d.reward, d.policy_version) for d in again] == [(d.reward, d.policy_version) for d in first]


def test_a_restart_sends_nothing_twice_and_goes_on_counting(world: World) -> None:
    started(world)
    again = world.open()
    again.turns(2)
    assert sent(world) == [1, 2]
    world.report(2)
    again.turns(2)
    assert sent(world) == [1, 2, 3, 4]


def test_a_batch_that_was_recorded_but_not_sent_is_sent_after_the_restart(world: World) -> None:
    started(world)
    before = content(world.broker.groups())
    with world.engine.begin() as connection:
        connection.execute(update(batches).where(batches.c.batch_id == 2).values(sent_at=None))
    world.open().turns(2)
    assert sent(world) == [1, 2, 2]
    assert content(world.broker.groups())[4:] == before[2:4]


def test_a_restart_draws_the_batch_that_would_have_come(world: World) -> None:
    """State and batch number reproduce a draw: the decks and the index come back as they were."""
    running = started(world, train=6)
    world.report(2)
    running.turns(2)
    expected = content(world.broker.groups())[4:]
    with world.engine.begin() as connection:  # as if the process had died just before it recorded the third
        for statement in _UNDO:
            connection.exec_driver_sql(statement)
    start = len(world.broker.groups())
    world.open().turns(1)
    assert content(world.broker.groups())[start:] == expected


_UNDO = (
    "DELETE FROM draws WHERE batch_id > 2",
    "DELETE FROM batches WHERE batch_id > 2",
    "UPDATE sampler_state SET samples = 16",
    "UPDATE decks d SET dealt = (SELECT count(*) FROM batches b, jsonb_array_elements(b.groups) g"
    " WHERE (g->>'prompt_id')::bigint = d.prompt_id"
    " AND CASE g->>'kind' WHEN 'online' THEN 'online' ELSE 'offline' END = d.deck)",
)


def test_a_resumed_learner_loses_batches_and_they_are_sent_again_after_the_deadline(world: World) -> None:
    running = started(world, reissue_seconds=60)
    for batch_id in (1, 2, 3):
        world.report(batch_id, checkpoint=1)
        running.turns(1)
    world.broker.send(topics.STEPS.name, Resumed(run_id=RUN, batch_id=1, step=1))
    running.turns(2)
    highest = max(sent(world))
    with world.reading() as connection:
        open_ones = connection.execute(select(batches.c.batch_id).where(batches.c.trained_step.is_(None)))
        assert sorted(open_ones.scalars()) == list(range(2, highest + 1))
    before = len(sent(world))
    world.now += 59.0
    running.turns(1)
    assert len(sent(world)) == before
    world.now += 2.0
    running.turns(1)
    assert sent(world)[before:] == [2, 3]
    world.report(2)
    running.turns(1)
    assert sent(world)[before:] == [2, 3, 4]


def test_batches_are_sent_again_at_once_when_the_broker_lost_its_logs(world: World) -> None:
    running = started(world, reissue_seconds=60)
    first = content(world.broker.groups())
    running.reader.logs_lost += 1
    running.turns(3)
    assert sent(world) == [1, 2, 1, 2]
    assert content(world.broker.groups())[len(first) :] == first


def test_batches_before_the_first_of_a_new_log_are_sent_again_when_the_learner_resumes_before_it(world: World) -> None:
    running = started(world, reissue_seconds=60)
    for batch_id in (1, 2, 3):
        world.report(batch_id, checkpoint=1)
        running.turns(1)
    running.reader.logs_lost += 1
    running.turns(2)
    before = len(sent(world))
    world.broker.send(topics.STEPS.name, Resumed(run_id=RUN, batch_id=1, step=1))
    running.turns(2)
    assert sent(world)[before:] == [2, 3]
    world.broker.send(topics.STEPS.name, Resumed(run_id=RUN, batch_id=1, step=1))
    running.turns(2)
    assert sent(world)[before:] == [2, 3]  # these are on the new log


def test_what_a_learner_says_at_the_start_of_a_new_log_is_heard_by_a_buffer_that_comes_back(world: World) -> None:
    world.broker.send(topics.STEPS.name, Resumed(run_id=RUN, batch_id=0, step=0))
    running = started(world)
    world.report(1)
    running.turns(1)
    # The broker and the buffer die, step 2 is not read; the learner says again what may be lost.
    world.broker.logs[topics.STEPS.name] = []
    world.report(1)
    world.report(2)
    world.broker.send(topics.STEPS.name, Resumed(run_id=RUN, batch_id=2, step=2))
    world.open().turns(1)
    with world.reading() as connection:
        assert list(connection.scalars(select(steps.c.step).order_by(steps.c.step))) == [1, 2]
        assert connection.scalar(select(runs.c.step)) == 2


@pytest.mark.parametrize("again", ["trained", "said"])
def test_a_step_is_dated_anew_when_it_is_trained_again_not_when_it_is_only_said_again(world: World, again: str) -> None:
    running = started(world)
    world.report(1)
    running.turns(1)
    with world.engine.begin() as connection:
        connection.execute(update(steps).values(created_at=func.now() - timedelta(hours=1)))
    world.broker.send(topics.STEPS.name, Resumed(run_id=RUN, batch_id=int(again == "said"), step=int(again == "said")))
    world.broker.send(topics.STEPS.name, step(1, loss=1.0 if again == "said" else 2.0))
    running.turns(1)
    with world.reading() as connection:
        recent = steps.c.created_at > func.now() - timedelta(minutes=1)
        assert connection.scalar(select(recent).where(steps.c.step == 1)) == (again == "trained")


def test_a_report_stands_for_the_batches_before_it(world: World) -> None:
    running = started(world)
    world.report(2)
    running.turns(2)
    with world.reading() as connection:
        rows = connection.execute(select(batches.c.batch_id, batches.c.trained_step).order_by(batches.c.batch_id))
        assert rows.all()[:2] == [(1, 1), (2, 2)]
    assert sent(world) == [1, 2, 3, 4]


def test_numbers_go_on_after_a_checkpoint_that_the_tables_do_not_know(world: World) -> None:
    world.broker.send(topics.STEPS.name, Resumed(run_id=RUN, batch_id=40, step=40))
    running = world.open()
    running.turns(1)
    started(world)
    assert sent(world) == [41, 42]


def test_a_batch_whose_trajectories_are_gone_is_drawn_anew_under_its_number(world: World) -> None:
    running = started(world, reissue_seconds=60)
    gone = [draw.trajectory_id for draw in world.broker.groups()[0].draws]
    with world.engine.begin() as connection:
        for table in (trajectories, payloads):
            connection.execute(table.delete().where(table.c.trajectory_id.in_(gone)))
    again = world.open(reissue_seconds=60)
    world.now += 61.0
    again.turns(1)
    world.answer_all(start=4)
    again.turns(2)
    resent = [g for g in world.broker.groups()[4:] if g.batch_id == 1]
    assert len(resent) >= 2
    assert {draw.trajectory_id for group in resent for draw in group.draws}.isdisjoint(gone)
    assert running.buffer.offsets == {}


def test_a_task_counts_the_batches_it_was_part_of(world: World) -> None:
    started(world)
    with world.reading() as connection:
        assert connection.execute(select(tasks.c.task_steps)).scalar_one() == 2


def test_the_reaper_keeps_what_a_batch_may_still_need(world: World) -> None:
    running = started(world, train=2, capacity_per_prompt=4)
    drawn = {draw.trajectory_id for group in world.broker.groups() for draw in group.draws}
    world.answer_all(start=2)  # four newer ones push the first four of each prompt out
    world.now += 3.0
    running.turns(2)
    with world.reading() as connection:
        stored = set(connection.execute(select(trajectories.c.trajectory_id)).scalars())
    assert drawn <= stored
    world.report(2, checkpoint=2)
    running.turns(1)
    world.now += 3.0
    running.turns(1)
    with world.reading() as connection:
        stored = set(connection.execute(select(trajectories.c.trajectory_id)).scalars())
        assert connection.execute(select(runs.c.checkpoint_batch_id)).scalar_one() == 2
    assert stored.isdisjoint(drawn)
    assert world.ledger().stored == len(stored) + len(drawn)


def test_a_learner_that_says_in_mid_run_where_it_is_claims_no_checkpoint_for_it(world: World) -> None:
    running = started(world, train=2, capacity_per_prompt=4)
    checkpoints = []
    for message in (step(1), step(2, checkpoint=1), Resumed(run_id=RUN, batch_id=2, step=2), step(3, checkpoint=2)):
        world.broker.send(topics.STEPS.name, message)
        running.turns(2)
        with world.reading() as connection:
            checkpoints.append(connection.execute(select(runs.c.checkpoint_batch_id)).scalar_one())
    assert checkpoints == [0, 1, 1, 2]  # the reaper keeps what later batches drew


def test_a_group_that_no_record_could_hold_is_cut(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.buffer.batches._GROUP_BYTES", 700)
    started(world)
    groups = world.broker.groups()
    assert groups
    assert {len(group.draws) for group in groups} == {2}


def test_a_draw_carries_what_the_reference_scorer_found(world: World) -> None:
    started(world, reward=[{"scorer": "verifier"}, {"scorer": "reference"}])
    groups = world.broker.groups()
    assert groups
    found = {draw.trajectory_id: draw.ref_logprob for group in groups for draw in group.draws}
    with world.reading() as connection:
        rows = connection.execute(select(trajectories.c.trajectory_id, trajectories.c.scores))
        stored = {row.trajectory_id: row.scores for row in rows}
    for trajectory_id, ref_logprob in found.items():
        assert [s["value"] for s in stored[trajectory_id] if s["scorer"] == "reference"] == [ref_logprob]


def test_without_a_reference_scorer_a_draw_has_no_reference_logprob(world: World) -> None:
    started(world)
    assert {draw.ref_logprob for group in world.broker.groups() for draw in group.draws} == {None}
