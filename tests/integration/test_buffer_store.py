"""Ingest against the real tables: rows once, orders settled in full, whatever is repeated or broken."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sqlalchemy import select

from services.buffer.ledger import Ledger
from services.buffer.state_tables import input_offsets
from services.buffer.tables import (
    dead_letters,
    evaluations,
    issues,
    payloads,
    prompts,
    runs,
    steps,
    trajectories,
    versions,
)
from tba_common import topics
from tests.buffer.world import Running, World, dead_letter, record, step
from tests.buffer.world import trajectories as trajectories_of

pytestmark = pytest.mark.integration


def started(world: World, *, train: int = 4, held_out: int = 0, **settings: object) -> Running:
    """A run with one task, a first version, and its first orders out."""
    world.add_task(train=train, held_out=held_out)
    world.announce(0)
    running = world.open(**settings)
    running.turns(2)
    return running


def test_answers_become_rows_payloads_and_settled_orders(world: World) -> None:
    running = started(world)
    world.answer_all()
    running.turns(1)
    assert world.ledger().stored == 16
    assert (world.count(trajectories), world.count(payloads)) == (16, 16)
    with world.reading() as connection:
        row = connection.execute(
            select(trajectories, payloads)
            .join(payloads, payloads.c.trajectory_id == trajectories.c.trajectory_id)
            .order_by(trajectories.c.trajectory_id)
            .limit(1)
        ).one()
        order = world.broker.prompts()[0]
        assert np.frombuffer(row.token_ids, "<i4").tolist() == [order.issue_id, 0, 2]
        assert np.frombuffer(row.logprobs, "<f4").tolist() == [-0.5, -0.5, -0.5]
        (score,) = row.scores
        assert (score["scorer"], score["version"], score["value"]) == ("verifier", "1", 0.0)
        assert (row.temperature, row.tokens, row.finish_reason) == (pytest.approx(0.9), 3, "eos")
        tokens = connection.execute(select(prompts.c.token_ids).where(prompts.c.prompt_id == order.prompt_id))
        assert np.frombuffer(tokens.scalar_one(), "<i4").tolist() == [order.prompt_id, 1]


def test_the_same_records_again_change_nothing(world: World) -> None:
    """A crash between the commit and whatever Kafka remembers: everything comes once more."""
    running = started(world)
    world.answer_all()
    running.turns(1)
    world.report(1)
    world.broker.send(topics.DEAD_LETTERS.name, dead_letter(world.broker.prompts()[-1].issue_id))
    running.turns(1)
    world.now += 61.0  # the prompt of the dead letter has rested
    running.turns(1)
    before = world.ledger(), world.count(trajectories), world.count(steps), world.count(versions)
    again = world.open()
    again.reader.rewind()  # as if the offsets had been lost
    again.turns(1)
    assert (world.ledger(), world.count(trajectories), world.count(steps), world.count(versions)) == before


def test_a_crash_before_the_commit_leaves_nothing_and_a_restart_reads_again(world: World) -> None:
    running = started(world)
    world.answer_all()
    world.rejected.fails = True  # the last act before the commit
    world.answer(world.broker.prompts()[0].model_copy(update={"issue_id": 999}))
    with pytest.raises(ConnectionError):
        running.turns(1)
    assert world.ledger() == Ledger(issued=16, stored=0, duplicates=0, dead_lettered=0, expired=0, in_flight=16)
    world.rejected.fails = False
    world.open().turns(1)
    assert world.ledger().stored == 16


def test_offsets_are_saved_with_the_rows_and_are_read_on_from(world: World) -> None:
    running = started(world)
    world.answer_all()
    running.turns(1)
    with world.reading() as connection:
        saved = {(r.topic, r.partition): r.next_offset for r in connection.execute(select(input_offsets))}
    assert saved == {("tba.weights", 0): 1, ("tba.trajectories", 0): 4}
    assert world.open().buffer.offsets == saved


def test_equal_answers_are_stored_once_and_counted_as_duplicates(world: World) -> None:
    running = started(world, train=1)
    world.answer(world.broker.prompts()[0], tokens=[[5], [5], [6], [5]])
    running.turns(2)
    assert world.ledger() == Ledger(issued=8, stored=2, duplicates=2, dead_lettered=0, expired=0, in_flight=4)
    world.answer(world.broker.prompts()[1], tokens=[[5], [6], [7], [7]])
    running.turns(1)
    ledger = world.ledger()
    assert (ledger.stored, ledger.duplicates) == (3, 5)


def test_a_newer_arrival_refreshes_a_stored_answer_and_an_older_one_does_not(world: World) -> None:
    running = started(world, train=1)
    same = [[5], [6], [7], [8]]
    world.announce(2)
    world.answer(world.broker.prompts()[0], tokens=same, version=1, rewards=[0, 0, 0, 0])
    running.turns(2)
    world.answer(world.broker.prompts()[1], tokens=same, version=[0, 1, 2, 2], rewards=[1, 1, 1, 1])
    running.turns(1)
    with world.reading() as connection:
        columns = trajectories.c.policy_version, trajectories.c.reward, trajectories.c.issue_id, payloads.c.logprobs
        joined = select(*columns).join(payloads, payloads.c.trajectory_id == trajectories.c.trajectory_id)
        rows = connection.execute(joined.order_by(trajectories.c.trajectory_id)).all()
    first = world.broker.prompts()[0].issue_id
    assert [(r.policy_version, r.reward, r.issue_id) for r in rows] == [
        (1, 0.0, first),
        (1, 1.0, first),
        (2, 1.0, first),
        (2, 1.0, first),
    ]
    assert [float(np.frombuffer(r.logprobs, "<f4")[0]) for r in rows] == [-1.5, -1.5, -2.5, -2.5]
    index = running.buffer._index
    assert index.eligible(world.broker.prompts()[0].prompt_id)["version"].tolist() == [1, 1, 2, 2]


def test_bad_rows_are_rejected_and_the_good_ones_beside_them_are_stored(world: World) -> None:
    running = started(world)
    first, second, third, _ = world.broker.prompts()
    world.answer(first, rewards=[math.nan, 1.0, math.inf, 0.0])
    world.answer(second, tokens=[[1], [2]])
    world.answer(third)
    world.answer(third.model_copy(update={"issue_id": 12_345}))
    running.turns(1)
    ledger = world.ledger()
    assert (ledger.stored, ledger.dead_lettered) == (6, 6)
    assert len(world.rejected.reasons) == 3


def test_a_record_that_does_not_decode_is_rejected_and_does_not_stop_the_others(world: World) -> None:
    running = started(world)
    order = world.broker.prompts()[0]
    log = world.broker.logs.setdefault(topics.TRAJECTORIES.name, [])
    good = record(trajectories_of(order), topics.TRAJECTORIES.name)
    log.append(type(good)(topics.TRAJECTORIES.name, 0, 0, None, b"rubbish", {"schema": good.headers["schema"]}))
    world.answer(order)
    running.turns(1)
    assert world.ledger().stored == 4
    assert "does not decode" in world.rejected.reasons[0]


def test_too_old_answers_are_counted_as_expired_and_not_stored(world: World) -> None:
    running = started(world, max_staleness_versions=2)
    world.announce(7)
    world.answer(world.broker.prompts()[0], version=[4, 5, 7, 8])
    running.turns(1)
    ledger = world.ledger()
    assert (ledger.stored, ledger.expired) == (3, 1)
    assert world.count(trajectories) == 3


def test_a_dead_letter_settles_its_order_and_is_kept_for_people(world: World) -> None:
    running = started(world)
    world.broker.send(topics.DEAD_LETTERS.name, dead_letter(world.broker.prompts()[0].issue_id, "too long"))
    world.broker.send(topics.DEAD_LETTERS.name, dead_letter(None, "what is this?"))
    running.turns(1)
    assert world.ledger().dead_lettered == 4
    assert world.count(dead_letters) == 2


def test_a_result_after_its_dead_letter_is_redelivered(world: World) -> None:
    running = started(world)
    order = world.broker.prompts()[0]
    world.broker.send(topics.DEAD_LETTERS.name, dead_letter(order.issue_id))
    running.turns(1)
    world.answer(order)
    running.turns(1)
    assert (world.ledger().dead_lettered, world.ledger().stored) == (4, 0)


def test_evaluations_are_stored_apart_and_never_sampled(world: World) -> None:
    running = started(world, train=1, held_out=3)
    with world.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO evaluation_requests (run_id, task_id, policy_version) SELECT run_id, task_id, 0 FROM tasks"
        )
    world.now += 2.0
    running.turns(1)
    world.answer_all()
    running.turns(1)
    assert world.ledger("eval") == Ledger(issued=3, stored=3, duplicates=0, dead_lettered=0, expired=0, in_flight=0)
    assert world.count(evaluations) == 3
    assert running.buffer._index.size == 4


def test_steps_versions_and_the_run_follow_the_learner(world: World) -> None:
    running = started(world)
    world.announce(3, steps_per_version=5)
    world.broker.send(topics.STEPS.name, step(1, policy_version=4, checkpoint=1, loss=math.nan))
    running.turns(1)
    with world.reading() as connection:
        run = connection.execute(select(runs)).one()
        assert (run.policy_version, run.step, run.checkpoint_batch_id) == (4, 1, 1)
        report = connection.execute(select(steps.c.report)).scalar_one()
    assert math.isnan(type(step(1)).model_validate(report).loss)
    assert world.count(versions) == 2


def test_the_tables_refuse_an_order_that_is_not_settled_in_full(world: World) -> None:
    started(world)
    with pytest.raises(Exception, match="settled_in_full"), world.engine.begin() as connection:
        connection.execute(issues.update().values(state="settled", stored=1))
