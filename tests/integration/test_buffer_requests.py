"""Gradings, re-scorings, seeds and replays: the buffer makes orders of them, and the ledger balances whatever comes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, insert, select, update

from services.buffer.request_tables import gradings, rescored, rescores, seeds
from services.buffer.tables import dead_letters, issues, tasks, trajectories
from tba_common import topics
from tba_common.codec import encode
from tba_common.kafka import DeliveryError
from tba_common.messages import DeadLetter, Message, Prompt, Rollout, Score, Trajectories
from tba_common.tasks import ScorerTerm
from tests.buffer.world import RUN, Running, World, dead_letter, task

pytestmark = pytest.mark.integration


@pytest.fixture
def world(world: World) -> World:
    """One in which the first version is announced."""
    world.announce(0)
    return world


def turns(world: World, running: Running, count: int = 3) -> None:
    """Turns with time between them: some things are looked for a few times a second only."""
    for _ in range(count):
        world.now += 1.1
        running.turns(1)


def rollouts(world: World, scorer: str = "verifier") -> list[Rollout]:
    log = world.broker.logs.get(topics.rollouts(scorer), [])
    return [message for message in (record.message() for record in log) if isinstance(message, Rollout)]


def judge(world: World, rollout: Rollout, rewards: list[float], version: str = "2", **details: list[float]) -> None:
    """A scorer answers."""
    values = np.array(rewards, dtype=np.float32)
    arrays = {name: np.array(figures, dtype=np.float32) for name, figures in details.items()}
    score = Score(scorer="verifier", version=version, values=values, seconds=0.1, attempts=2, details=arrays)
    stamped = rollout.model_copy(update={"scores": (score,), "remaining": ()})
    world.broker.send(topics.TRAJECTORIES.name, Trajectories(run_id=RUN, rollout=stamped, rewards=values))


def ask_for_grading(world: World, *completions: str) -> int:
    request = {
        **{"text": "1+1=", "system": None, "prompt_format": "text", "reference": "2", "metadata": {}},
        **{"completions": completions, "sampling": {}, "combination": {"min_tokens": 3, "short_reward": -1.0}},
        "reward": [{"scorer": "verifier"}],
    }
    with world.engine.begin() as connection:
        row = insert(gradings).values(run_id=RUN, request=request).returning(gradings.c.grading_id)
        return int(connection.execute(row).scalar_one())


def row_of(world: World, table: Any) -> Any:
    with world.reading() as connection:
        return connection.execute(select(table)).one()


def stored_rewards(world: World) -> dict[int, float]:
    with world.reading() as connection:
        rows = connection.execute(select(trajectories.c.trajectory_id, trajectories.c.reward))
        return {row.trajectory_id: row.reward for row in rows}


def test_a_grading_goes_straight_to_its_first_scorer_and_comes_back_as_a_result(world: World) -> None:
    running = world.open()
    ask_for_grading(world, "2", "3")
    turns(world, running)
    (rollout,) = rollouts(world)
    assert (rollout.prompt.purpose, rollout.prompt.text, rollout.remaining) == ("grade", "1+1=", ("verifier",))
    assert [completion.text for completion in rollout.completions] == ["2", "3"]
    assert rollout.prompt.combination.min_tokens == 0  # a text without tokens is not a short one
    assert rollout.prompt.combination.short_reward == -1.0
    judge(world, rollout, [1.0, 0.0], confidence=[0.75, float("nan")])
    turns(world, running)
    graded = row_of(world, gradings)
    assert [one["reward"] for one in graded.result] == [1.0, 0.0]
    first, second = (one["scores"][0] for one in graded.result)
    assert (first["version"], first["attempts"], first["details"]) == ("2", 2, {"confidence": 0.75})
    assert second["details"] == {}
    assert graded.fault is None
    assert world.count(trajectories) == 0
    assert world.ledger().issued == 0
    assert world.ledger("grade").stored == 2


def test_a_grading_that_is_dead_lettered_tells_the_reason_and_can_be_replayed(world: World) -> None:
    running = world.open()
    ask_for_grading(world, "2")
    turns(world, running)
    (rollout,) = rollouts(world)
    bury(world, rollout, topics.rollouts("verifier"), "the scorer crashed")
    turns(world, running)
    assert row_of(world, gradings).fault == "the scorer crashed"
    assert world.ledger("grade").dead_lettered == 1
    ask_for_replay(world)
    turns(world, running)
    assert row_of(world, gradings).fault is None
    judge(world, rollouts(world)[-1], [1.0])
    turns(world, running)
    assert row_of(world, gradings).result[0]["reward"] == 1.0
    assert world.ledger("grade").stored == 1


def test_a_grading_that_nobody_answers_is_sent_again_and_given_up_at_last(world: World) -> None:
    running = world.open()
    ask_for_grading(world, "2")
    turns(world, running)
    world.now += 100
    turns(world, running)
    assert [rollout.prompt.attempt for rollout in rollouts(world)] == [1, 2]
    for _ in range(8):
        world.now += 10_000
        turns(world, running)
    assert len(rollouts(world)) == 5
    assert row_of(world, gradings).fault.startswith("no answer after 5 attempts")
    assert world.ledger("grade").expired == 1


def test_a_restart_loses_no_grading(world: World) -> None:
    ask_for_grading(world, "2")
    turns(world, world.open())
    running = world.open()
    judge(world, rollouts(world)[0], [1.0])
    turns(world, running)
    assert row_of(world, gradings).result[0]["reward"] == 1.0
    assert len(rollouts(world)) == 1


def fill(world: World, **fields: Any) -> tuple[Running, int, int]:
    """A run whose four prompts were answered once; also where the next orders start, and the task."""
    task_id = world.add_task(**fields)
    running = world.open(min_size=1_000)
    turns(world, running)
    start = world.answer_all()
    turns(world, running)
    return running, start, task_id


def ask_for_rescore(world: World, task_id: int, reward: tuple[ScorerTerm, ...] | None = None, **chosen: Any) -> None:
    spec = task() if reward is None else task(reward=reward)
    document = spec.model_dump(mode="json")
    values = {"run_id": RUN, "task_id": task_id, "requested_by": "ada", "chosen": chosen}
    with world.engine.begin() as connection:
        connection.execute(update(tasks).values(spec=document))
        asked = {"reward": document["reward"], "combination": document["combination"]}
        connection.execute(insert(rescores).values(**values, **asked))


def settle_training(world: World, running: Running, start: int) -> None:
    """What was ordered before a re-scoring comes back, so that it can begin."""
    turns(world, running)
    world.answer_all(start=start)
    turns(world, running)


def test_stored_trajectories_are_scored_again_once_what_is_in_flight_has_come_back(world: World) -> None:
    running, start, task_id = fill(world)
    ask_for_rescore(world, task_id, (ScorerTerm(scorer="verifier", weight=3.0),))
    turns(world, running)
    assert rollouts(world) == []
    settle_training(world, running, start)
    sent = rollouts(world)
    total = row_of(world, rescores).total
    assert sum(len(rollout.completions) for rollout in sent) == total == world.count(rescored)
    assert {rollout.prompt.reward[0].weight for rollout in sent} == {3.0}
    assert all(rollout.prompt_token_ids.tolist() == [rollout.prompt.prompt_id, 1] for rollout in sent)
    for rollout in sent:
        judge(world, rollout, [3.0] * len(rollout.completions))
    turns(world, running)
    chosen = [reward for reward in stored_rewards(world).values() if reward == 3.0]
    assert len(chosen) == total
    assert row_of(world, rescores).closed_at is not None
    with world.reading() as connection:
        audit = connection.execute(select(rescored)).all()
    assert {(row.old_reward, row.new_reward) for row in audit} == {(0.0, 3.0), (1.0, 3.0)}
    assert {row.new_scores[0]["version"] for row in audit} == {"2"}
    world.ledger()
    world.ledger("rescore")


def test_a_new_reward_is_in_the_index_at_once(world: World) -> None:
    running, start, task_id = fill(world)
    ask_for_rescore(world, task_id)
    settle_training(world, running, start)
    for rollout in rollouts(world):
        judge(world, rollout, [7.0] * len(rollout.completions))
    turns(world, running)
    (prompt_id, *_) = {rollout.prompt.prompt_id for rollout in rollouts(world)}
    index = running.buffer._index
    assert 7.0 in index.eligible(prompt_id)["reward"].tolist()
    rewards = stored_rewards(world)
    for row in index.eligible(prompt_id):
        assert rewards[int(row["trajectory_id"])] == row["reward"]


def test_a_re_scoring_may_be_limited_to_some(world: World) -> None:
    running, start, task_id = fill(world)
    ask_for_rescore(world, task_id, min_reward=1.0, limit=3)
    settle_training(world, running, start)
    assert row_of(world, rescores).total == 3
    with world.reading() as connection:
        assert set(connection.scalars(select(rescored.c.old_reward))) == {1.0}
    assert world.count(rescored) == 3


def test_what_cannot_be_scored_again_keeps_its_reward_and_says_why(world: World) -> None:
    running, start, task_id = fill(world)
    ask_for_rescore(world, task_id, limit=1)
    settle_training(world, running, start)
    before = stored_rewards(world)
    (rollout,) = rollouts(world)
    judge(world, rollout, [float("nan")])
    turns(world, running)
    assert stored_rewards(world).items() >= before.items()
    assert row_of(world, rescored).fault.endswith("got [nan]")
    assert row_of(world, rescores).closed_at is not None
    assert world.ledger("rescore").dead_lettered == 1


def test_a_trajectory_that_left_the_buffer_meanwhile_is_counted_and_not_brought_back(world: World) -> None:
    running, start, task_id = fill(world)
    ask_for_rescore(world, task_id, limit=1)
    settle_training(world, running, start)
    (rollout,) = rollouts(world)
    other = rollout.completions[0].model_copy(update={"token_ids": np.array([9, 9, 9], dtype=np.int32)})
    judge(world, rollout.model_copy(update={"completions": (other,)}), [1.0])
    turns(world, running)
    assert row_of(world, rescored).fault == "it has left the buffer"
    assert world.ledger("rescore").expired == 1


def bury(world: World, message: Message, topic: str, reason: str) -> None:
    schema, body = encode(message)
    prompt = message.prompt if isinstance(message, Rollout) else message
    assert isinstance(prompt, Prompt)
    letter = dead_letter(prompt.issue_id, reason)
    found = {"topic": topic, "partition": 3, "schema_header": schema, "body": body}
    world.broker.send(topics.DEAD_LETTERS.name, DeadLetter(**{**dict(letter), **found}))


def ask_for_replay(world: World) -> None:
    with world.engine.begin() as connection:
        connection.execute(update(dead_letters).values(replay_asked_at=func.now()))


def test_a_replayed_dead_letter_opens_its_order_again_and_the_ledger_balances(world: World) -> None:
    world.add_task(train=1)
    running = world.open()
    turns(world, running)
    (order,) = world.broker.prompts()
    bury(world, order, topics.PROMPTS.name, "no such version")
    turns(world, running, 1)
    assert world.ledger().dead_lettered == 4
    ask_for_replay(world)
    turns(world, running, 1)
    assert (world.ledger().dead_lettered, world.ledger().in_flight) == (0, 4)
    assert world.broker.prompts()[-1] == order  # the bytes as they were
    assert world.broker.partitions[-1] == 3
    turns(world, running)
    assert len(world.broker.prompts()) == 2  # asked once, sent once
    world.answer(order)
    turns(world, running, 1)
    assert world.ledger().stored == 4
    assert row_of(world, dead_letters).replayed_at is not None


def test_a_replay_that_nobody_answers_is_ordered_again(world: World) -> None:
    world.add_task(train=1)
    running = world.open()
    turns(world, running)
    bury(world, world.broker.prompts()[0], topics.PROMPTS.name, "no such version")
    turns(world, running, 1)
    ask_for_replay(world)
    turns(world, running, 1)
    world.now += 10_000
    turns(world, running, 1)
    assert [order.attempt for order in world.broker.prompts()] == [1, 1, 3]


def test_an_order_that_was_answered_is_not_opened_again(world: World) -> None:
    world.add_task(train=1)
    running = world.open()
    turns(world, running)
    (order,) = world.broker.prompts()
    world.answer(order)
    turns(world, running, 1)
    bury(world, order, topics.PROMPTS.name, "too late")
    turns(world, running, 1)
    ask_for_replay(world)
    sent = len(world.broker.prompts())
    turns(world, running, 1)
    assert world.broker.prompts()[sent:] == [p for p in world.broker.prompts()[sent:] if p.issue_id != order.issue_id]
    assert "4 stored" in row_of(world, dead_letters).replay_fault
    assert world.ledger().stored == 4


def test_bytes_that_belong_to_no_order_are_sent_as_they_are(world: World) -> None:
    running = world.open()
    letter = dead_letter(None, "garbage")
    world.broker.send(topics.DEAD_LETTERS.name, letter.model_copy(update={"body": b"\xff\x00", "topic": "tba.steps"}))
    turns(world, running, 1)
    ask_for_replay(world)
    turns(world, running, 1)
    assert world.broker.logs["tba.steps"][-1].value == b"\xff\x00"


def test_a_replay_is_delivered_before_it_is_recorded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    running = world.open()
    letter = dead_letter(None, "garbage")
    world.broker.send(topics.DEAD_LETTERS.name, letter.model_copy(update={"body": b"\xff\x00", "topic": "tba.steps"}))
    turns(world, running, 1)
    ask_for_replay(world)

    def fail(*_: object) -> None:
        raise DeliveryError("not acknowledged")

    with monkeypatch.context() as there:
        there.setattr(world.broker, "flush", fail)
        with pytest.raises(DeliveryError):
            turns(world, running, 1)
    assert row_of(world, dead_letters).replayed_at is None
    turns(world, world.open(), 1)
    assert row_of(world, dead_letters).replayed_at is not None


def test_judgements_that_the_broker_loses_often_are_not_given_up(world: World) -> None:
    running = world.open()
    ask_for_grading(world, "2")
    turns(world, running)
    for _ in range(8):
        running.reader.logs_lost += 1
        turns(world, running)
    assert len(rollouts(world)) == 9
    assert row_of(world, gradings).fault is None


def add_seeds(world: World, task_id: int, prompt_id: int, *answers: str) -> None:
    rows = [{"run_id": RUN, "task_id": task_id, "prompt_id": prompt_id, "text": answer} for answer in answers]
    with world.engine.begin() as connection:
        connection.execute(insert(seeds), rows)


def test_seeds_are_ordered_with_their_answers_given_and_stored_like_any_other(world: World) -> None:
    task_id = world.add_task(train=1, template="Say: {text}")
    running = world.open()
    prompt_id = 1
    add_seeds(world, task_id, prompt_id, "one", "two", "three")
    turns(world, running, 2)
    orders = world.broker.prompts()
    seeded = next(order for order in orders if order.given)
    assert seeded.given == ("one", "two", "three")
    assert (seeded.purpose, seeded.text) == ("train", "Say: train 0")
    world.answer(seeded, tokens=[[1, 2], [3, 2], [4, 2]])
    for order in orders:
        if not order.given:
            world.answer(order)
    turns(world, running, 2)
    assert world.count(trajectories) == 3 + 4 * (len(orders) - 1)
    world.ledger()
    with world.reading() as connection:
        assert set(connection.scalars(select(seeds.c.issue_id))) == {seeded.issue_id}


def given(world: World) -> list[tuple[str, ...]]:
    return [order.given for order in world.broker.prompts() if order.given]


def test_seeds_whose_task_was_paused_while_their_order_was_lost_are_ordered_when_it_goes_on(world: World) -> None:
    task_id = world.add_task(train=1)
    running = world.open()
    add_seeds(world, task_id, 1, "one", "two")
    turns(world, running, 2)
    with world.engine.begin() as connection:
        connection.execute(update(tasks).values(state="paused"))
    turns(world, running)
    running.reader.logs_lost += 1
    turns(world, running)
    assert given(world) == [("one", "two")]
    with world.engine.begin() as connection:
        connection.execute(update(tasks).values(state="active"))
    for _ in range(10):  # the feed had the prompt itself in hand first
        turns(world, running)
        for order in world.broker.prompts():
            if not order.given:
                world.answer(order)
    assert given(world) == 2 * [("one", "two")]
    world.ledger()


def test_seeds_that_came_back_too_old_are_ordered_anew(world: World) -> None:
    task_id = world.add_task(train=1)
    running = world.open(max_staleness_versions=4)
    add_seeds(world, task_id, 1, "one", "two")
    turns(world, running, 2)
    (order,) = [order for order in world.broker.prompts() if order.given]
    world.announce(9)
    turns(world, running, 1)
    world.answer(order, version=0, tokens=[[1, 2], [3, 2]])
    turns(world, running)
    assert world.ledger().expired == 2
    assert given(world) == 2 * [("one", "two")]


def test_an_order_of_seeds_holds_no_more_than_a_message_may(world: World) -> None:
    task_id = world.add_task(train=1)
    running = world.open()
    add_seeds(world, task_id, 1, *(letter * 60_000 for letter in "abcdef"), "\U0001f600" * 65_536)
    for _ in range(5):
        turns(world, running, 2)
        for order in world.broker.prompts():
            world.answer(order, tokens=[[place, 2] for place in range(max(1, len(order.given)))])
    assert [[(text[0], len(text)) for text in texts] for texts in given(world)] == [
        [(letter, 60_000) for letter in "abcd"],
        [(letter, 60_000) for letter in "ef"],
        [("\U0001f600", 65_536)],
    ]


def test_a_lost_order_of_seeds_is_sent_again_with_its_answers(world: World) -> None:
    task_id = world.add_task(train=1)
    add_seeds(world, task_id, 1, "one", "two")
    turns(world, world.open(), 1)
    running = world.open()
    world.now += 10_000
    turns(world, running, 1)
    again = [order.given for order in world.broker.prompts() if order.attempt == 2]
    assert again == [("one", "two")]
    with world.reading() as connection:
        assert connection.scalar(select(func.sum(issues.c.completions))) == 2
