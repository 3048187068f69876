"""Orders: in turn, never twice at once, paced by the learner, sent again when lost, given up in the end."""

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import func, select, update

from services.buffer.feed import MAX_ATTEMPTS
from services.buffer.request_tables import evaluation_requests
from services.buffer.tables import issues, prompts, tasks
from tba_common import topics
from tests.buffer.world import World, add_prompts, dead_letter

pytestmark = pytest.mark.integration


def test_nothing_is_ordered_before_there_is_a_policy(world: World) -> None:
    world.add_task()
    running = world.open()
    running.turns()
    assert world.broker.prompts() == []
    world.announce(0)
    running.turns()
    assert len(world.broker.prompts()) == 4


def test_a_prompt_is_never_in_flight_twice(world: World) -> None:
    world.add_task(train=3)
    world.announce(0)
    running = world.open()
    running.turns(5)
    assert Counter(p.prompt_id for p in world.broker.prompts()).most_common(1)[0][1] == 1
    world.answer(world.broker.prompts()[0])
    running.turns(2)
    assert [p.prompt_id for p in world.broker.prompts()[3:]] == [world.broker.prompts()[0].prompt_id]


def test_the_least_ordered_prompts_come_first(world: World) -> None:
    task_id = world.add_task(train=2)
    world.announce(0)
    running = world.open()
    for _ in range(3):
        start = len(world.broker.prompts())
        running.turns(1)
        world.answer_all(start=start)
    with world.engine.begin() as connection:
        add_prompts(connection, task_id, 1, "train")
    ordered = len(world.broker.prompts())
    running.turns(1)
    with world.reading() as connection:
        newest = connection.execute(select(func.max(prompts.c.prompt_id))).scalar_one()
    assert world.broker.prompts()[ordered].prompt_id == newest


def test_tasks_take_turns(world: World) -> None:
    first, second = world.add_task(train=40), world.add_task(train=40, name="other")
    world.announce(0)
    world.open(max_staleness_versions=1, groups_per_batch=8).turns()
    assert Counter(p.task_id for p in world.broker.prompts()) == {first: 4, second: 4}


def test_an_order_carries_its_task_and_says_where_it_belongs(world: World) -> None:
    world.add_task(train=1, prompt_format="chat")
    world.announce(0)
    world.open().turns()
    order = world.broker.prompts()[0]
    assert (order.text, order.reference, order.prompt_format, order.purpose) == ("train 0", "0", "chat", "train")
    assert (order.attempt, order.policy_version, order.sampling.completions) == (1, None, 4)


def test_orders_spread_over_the_partitions(world: World) -> None:
    world.add_task(train=48)
    world.announce(0)
    world.open(groups_per_batch=16).turns()
    partitions = [p for p in world.broker.partitions if p is not None]
    assert Counter(partitions) == dict.fromkeys(range(topics.PROMPTS.partitions), 2)
    with world.reading() as connection:
        assert sorted(connection.execute(select(issues.c.partition)).scalars()) == sorted(partitions)


def test_the_feed_waits_when_the_learner_cannot_take_in_more(world: World) -> None:
    world.add_task(train=60)
    world.announce(0)
    running = world.open(groups_per_batch=2, max_staleness_versions=3)
    done = 0
    for _ in range(12):  # the learner takes its two batches and then trains nothing
        running.turns(1)
        done = world.answer_all(start=done)
    # Four groups are in its two batches; six more can be absorbed before they are too old.
    assert len(world.broker.prompts()) == 4 + 6
    world.report(1)
    running.turns(3)
    assert 10 < len(world.broker.prompts()) <= 12


def test_a_lost_order_is_sent_again_to_the_least_loaded_partition(world: World) -> None:
    world.add_task(train=1)
    world.announce(0)
    running = world.open(reissue_seconds=60)
    running.turns()
    world.now += 59.0
    running.turns()
    assert len(world.broker.prompts()) == 1
    world.now += 2.0
    running.turns()
    first, second = world.broker.prompts()
    assert (second.issue_id, second.attempt, first.attempt) == (first.issue_id, 2, 1)
    world.answer(second)
    world.answer(first)
    running.turns()
    assert world.ledger().stored == 4


def test_an_order_nobody_answers_is_given_up_as_expired(world: World) -> None:
    world.add_task(train=1)
    world.announce(0)
    running = world.open(reissue_seconds=10)
    running.turns(2)
    for attempt in range(MAX_ATTEMPTS):
        world.now += 10.0 * 2**attempt + 1.0  # each silence is waited for twice as long as the one before
        running.turns(2)
    assert [p.attempt for p in world.broker.prompts()] == [1, 2, 3, 4, 5, 1]
    assert world.broker.prompts()[-1].issue_id != world.broker.prompts()[0].issue_id
    assert world.ledger().expired == 4


def test_orders_are_not_piled_up_while_no_generator_is_there(world: World) -> None:
    world.add_task(train=4)
    world.announce(0)
    running = world.open(reissue_seconds=10)
    for _ in range(60):
        running.turns(1)
        world.now += 10.0
    assert len(world.broker.prompts()) <= 4 * (MAX_ATTEMPTS + 1)


def test_a_broker_that_loses_its_logs_often_makes_nobody_give_up(world: World) -> None:
    world.add_task(train=1, held_out=1, evaluate_every_versions=1)
    world.announce(0)
    running = world.open(reissue_seconds=60)
    for _ in range(2 * MAX_ATTEMPTS):
        world.now += 2.0
        running.reader.logs_lost += 1
        running.turns(2)
    assert len({p.issue_id for p in world.broker.prompts()}) == 2
    assert len(world.broker.prompts()) >= 4 * MAX_ATTEMPTS - 2
    assert (world.ledger().expired, world.ledger("eval").expired) == (0, 0)


def test_an_evaluation_that_nobody_answered_is_ordered_anew(world: World) -> None:
    world.add_task(train=0, held_out=2, evaluate_every_versions=1)
    world.announce(0)
    running = world.open(reissue_seconds=10)
    for seconds in (1.0, 1.0, *(10.0 * 2**attempt + 1.0 for attempt in range(MAX_ATTEMPTS)), 1.0, 1.0):
        world.now += seconds
        running.turns(2)
    orders = world.broker.prompts()
    assert [p.attempt for p in orders] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 1, 1]
    assert {p.policy_version for p in orders} == {0}
    world.answer_all()
    running.turns()
    book = world.ledger("eval")
    assert (book.issued, book.stored, book.expired) == (4, 2, 2)


def test_slow_answers_move_the_deadline(world: World) -> None:
    world.add_task(train=4)
    world.announce(0)
    running = world.open(reissue_seconds=10)
    running.turns()
    world.now += 9.0
    world.answer_all(start=1)
    running.turns()
    world.now += 9.0  # 18 s old, but what came back took 9
    running.turns()
    assert [p.attempt for p in world.broker.prompts()[:4]] == [1, 1, 1, 1]
    assert world.broker.prompts()[0].issue_id not in [p.issue_id for p in world.broker.prompts()[4:]]


def test_a_paused_task_gets_no_new_orders_and_lost_ones_are_given_up(world: World) -> None:
    world.add_task(train=2)
    world.announce(0)
    running = world.open(reissue_seconds=10)
    running.turns()
    with world.engine.begin() as connection:
        connection.execute(update(tasks).values(state="paused"))
    world.answer(world.broker.prompts()[0])
    world.now += 1.0
    running.turns()
    world.now += 10.0
    running.turns()
    assert len(world.broker.prompts()) == 2
    ledger = world.ledger()
    assert (ledger.stored, ledger.expired, ledger.in_flight) == (4, 4, 0)


def test_a_task_posted_to_a_live_run_is_picked_up(world: World) -> None:
    world.announce(0)
    running = world.open()
    running.turns()
    world.add_task(train=2)
    world.now += 1.0
    running.turns()
    assert len(world.broker.prompts()) == 2


def test_a_restart_takes_over_what_is_in_flight(world: World) -> None:
    world.add_task(train=3)
    world.announce(0)
    world.open(reissue_seconds=30).turns()
    world.now += 29.0
    again = world.open(reissue_seconds=30)
    again.turns()
    assert len(world.broker.prompts()) == 3
    world.now += 31.0
    again.turns(1)
    assert [p.attempt for p in world.broker.prompts()] == [1, 1, 1, 2, 2, 2]


def test_every_nth_version_is_evaluated_once_greedily_and_pinned(world: World) -> None:
    world.add_task(train=1, held_out=3, evaluate_every_versions=2)
    running = world.open()
    for version in (0, 1, 2, 2, 2):
        world.announce(version)
        world.now += 1.0
        running.turns()
    orders = [p for p in world.broker.prompts() if p.purpose == "eval"]
    assert Counter(p.policy_version for p in orders) == {0: 3, 2: 3}
    sampling = orders[0].sampling
    assert (sampling.completions, sampling.temperature, sampling.top_p, sampling.exploration) == (1, 0, 1, None)
    with world.reading() as connection:
        assert None not in connection.execute(select(evaluation_requests.c.issued_at)).scalars().all()


def test_an_evaluation_is_sampled_several_times_where_its_task_says_so(world: World) -> None:
    asked = {"completions": 3, "temperature": 1.0}
    world.add_task(train=0, held_out=2, evaluate_every_versions=1, evaluation=asked, sampling={"top_p": 0.9})
    world.announce(0)
    running = world.open()
    running.turns()
    world.now += 1.0
    running.turns()
    orders = world.broker.prompts()
    assert [(p.purpose, p.policy_version) for p in orders] == [("eval", 0)] * 2
    sampling = orders[0].sampling
    assert (sampling.completions, sampling.temperature, sampling.top_p) == (3, 1.0, 1.0)
    world.answer_all(start=0)
    running.turns()
    assert world.ledger("eval").stored == 6


def test_a_task_posted_late_is_evaluated_at_the_version_that_is_announced_again(world: World) -> None:
    running = world.open()
    world.announce(4)
    running.turns()
    world.add_task(train=1, held_out=2, evaluate_every_versions=4)
    world.announce(4)
    world.now += 1.0
    running.turns()
    assert [p.policy_version for p in world.broker.prompts() if p.purpose == "eval"] == [4, 4]


def test_an_evaluation_is_due_at_the_next_version_where_its_own_was_never_heard_of(world: World) -> None:
    world.add_task(train=1, held_out=1, evaluate_every_versions=4)
    running = world.open()
    for version in (0, 3, 5, 6, 8, 9, 18, 19):
        world.announce(version)
        world.now += 1.0
        running.turns()
    orders = [p.policy_version for p in world.broker.prompts() if p.purpose == "eval"]
    assert orders == [0, 5, 8, 18]


def test_evaluations_are_bounded_in_flight_and_all_are_done_in_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.buffer.feed.MAX_EVALUATIONS_IN_FLIGHT", 3)
    world.add_task(train=0, held_out=7, evaluate_every_versions=1)
    world.announce(0)
    running = world.open()
    done, most = 0, 0
    for _ in range(8):
        world.now += 1.0
        running.turns(1)
        most = max(most, len(world.broker.prompts()) - done)
        done = world.answer_all(start=done)
    assert (most, done) == (3, 7)
    assert world.ledger("eval").stored == 7


def test_an_evaluation_whose_version_is_gone_is_settled_by_its_dead_letter(world: World) -> None:
    world.add_task(train=0, held_out=1, evaluate_every_versions=1)
    world.announce(0)
    running = world.open()
    running.turns()
    world.now += 1.0
    running.turns()
    world.broker.send(topics.DEAD_LETTERS.name, dead_letter(world.broker.prompts()[0].issue_id))
    running.turns()
    assert world.ledger("eval").dead_lettered == 1


def test_lost_orders_of_a_paused_task_are_given_up_one_deadline_after_each_was_sent(world: World) -> None:
    world.add_task(train=8)
    world.announce(0)
    running = world.open(reissue_seconds=10, groups_per_batch=1, max_staleness_versions=2)
    running.turns(1)
    world.now += 5.0
    running.turns(1)
    with world.engine.begin() as connection:
        connection.execute(update(tasks).values(state="paused"))
    world.now += 6.0
    running.turns(2)
    world.now += 5.0
    running.turns(2)
    assert world.ledger().in_flight == 0


def test_a_prompt_that_nobody_can_serve_rests_before_it_is_ordered_again(world: World) -> None:
    world.add_task(train=1)
    world.announce(0)
    running = world.open()
    running.turns()
    world.broker.send(topics.DEAD_LETTERS.name, dead_letter(world.broker.prompts()[0].issue_id, "too long"))
    running.turns()
    world.now += 59.0
    running.turns()
    assert len(world.broker.prompts()) == 1
    world.now += 2.0
    running.turns()
    assert len(world.broker.prompts()) == 2
    world.answer(world.broker.prompts()[1])
    running.turns()
    assert len(world.broker.prompts()) == 3
    assert (world.ledger().dead_lettered, world.ledger().stored) == (4, 4)


def test_orders_are_sent_again_at_once_when_the_broker_lost_its_logs(world: World) -> None:
    world.add_task(train=2)
    world.announce(0)
    running = world.open(reissue_seconds=60)
    running.turns()
    world.now += 1.0
    running.reader.logs_lost += 1
    running.turns()
    orders = world.broker.prompts()
    assert [p.issue_id for p in orders] == 2 * [p.issue_id for p in orders[:2]]
    assert {p.attempt for p in orders} == {1}  # nobody was too slow
    world.answer_all()
    running.turns()
    assert world.ledger().in_flight == 4 * (len(world.broker.prompts()) - 4)
