"""A buffer whose batches are drawn in PostgreSQL: lawful, level with the index, and clear where the two disagree."""

from __future__ import annotations

from collections import Counter
from itertools import cycle
from typing import Any

import pytest
from sqlalchemy import select, text, update

from services.buffer.restore import seed_of
from services.buffer.sampling import Sampler
from services.buffer.sql_sampler import SqlSampler
from services.buffer.state_tables import decks, sampler_state
from services.buffer.tables import batches, draws, runs, tasks, trajectories
from tests.buffer.law_suite import EPOCHS, REWARDS, VERSIONS
from tests.buffer.law_world import by_sql, fill
from tests.buffer.world import RUN, Running, World

pytestmark = pytest.mark.integration


class Line:
    """A buffer with the rest of the line around it, each turn a step and a version further."""

    def __init__(self, world: World, *, train: int = 6, **settings: Any) -> None:
        self.world, self.settings = world, settings
        world.add_task(train=train)
        world.announce(0)
        self.running = self.start()
        self.answered = self.trained = 0

    def start(self, **changes: Any) -> Running:
        """Start the buffer, or start it again."""
        self.running = self.world.open(**self.settings | changes)
        return self.running

    def turn(self) -> None:
        """Answer every order, draw what may be drawn, train a batch."""
        self.running.turns(1)
        self.answered = self.world.answer_all(start=self.answered, version=self.trained)
        if self.trained < max((group.batch_id for group in self.world.broker.groups()), default=0):
            self.trained += 1
            self.world.report(self.trained, policy_version=self.trained)
            self.world.announce(self.trained)
        self.world.now += 0.1


def seen_by_sql(running: Running, world: World, **settings: Any) -> tuple[set[int], set[int]]:
    """The prompts that are ready in the tables, and those that are with what the newest version said."""
    sampler = SqlSampler(world.engine.begin, world.settings(**settings), seed_of(RUN))
    with world.reading() as connection:
        state = connection.execute(select(runs.c.policy_version, sampler_state).join(sampler_state)).one()
        found = sampler._decks(connection, 1, state)
    return tuple({row.prompt_id for row in found[name].order} for name in ("offline", "online"))  # type: ignore[return-value]


def counts(world: World, deck: str) -> Counter[int]:
    """How often each prompt was dealt, as the tables have it."""
    with world.reading() as connection:
        rows = connection.execute(select(decks.c.prompt_id, decks.c.dealt).where(decks.c.deck == deck))
        return Counter({row.prompt_id: row.dealt for row in rows})


def stock(world: World, prompts: int) -> dict[int, int]:
    """Store as many prompts of the law's world, with no limiter in the way; return the id of each one's first."""
    with world.engine.begin() as connection:
        connection.execute(update(sampler_state).values(inserts=1_000_000))
    return fill(world, [(VERSIONS, REWARDS)] * prompts)


def status(world: World) -> dict[str, Any]:
    with world.reading() as connection:
        return dict(connection.execute(select(runs.c.status)).scalar_one())


def test_batches_drawn_in_sql_reach_the_learner_by_the_law(world: World) -> None:
    settings: dict[str, Any] = {"sampler": "sql", "capacity_per_prompt": 6, "max_staleness_versions": 2}
    line = Line(world, **settings)
    for _ in range(30):
        line.turn()
        index = line.running.buffer._index
        index.activate(line.running.buffer._feed.active)
        assert seen_by_sql(line.running, world, **settings) == (index.ready, index.online_ready)
    groups = world.broker.groups()
    assert line.trained > 15
    assert sorted({g.batch_id for g in groups}) == list(range(1, line.trained + 3))[: len({g.batch_id for g in groups})]
    with world.reading() as connection:
        drawn_at = {row.batch_id: row.policy_version for row in connection.execute(select(batches))}
        recorded = Counter(row.batch_id for row in connection.execute(select(draws)))
        assert connection.execute(select(runs.c.policy_version)).scalar_one() == line.running.buffer._index.version
    for batch_id in drawn_at:
        mine = [group for group in groups if group.batch_id == batch_id]
        assert len({group.prompt_id for group in mine}) == len(mine) == 2
        assert sum(len(group.draws) for group in mine) == recorded[batch_id] == 8
        assert all(drawn_at[batch_id] - draw.policy_version <= 2 for group in mine for draw in group.draws)
    assert {group.kind for group in groups} >= {"online", "offline"}
    assert world.ledger().stored > 0


@pytest.mark.parametrize("order", [("index", "sql"), ("sql", "index")])
def test_a_restart_may_change_who_draws_and_deals_on_evenly(world: World, order: tuple[str, str]) -> None:
    line = Line(world, most_on_policy_probability=0.0, max_staleness_versions=1_000, samples_per_insert=1e6)
    prompts: set[int] = set()
    for number, sampler in zip(range(6), cycle(order), strict=False):
        line.start(sampler=sampler)
        for _ in range(6):
            line.turn()
            if len(line.running.buffer._index.ready) == 6 and not prompts:
                prompts = set(line.running.buffer._index.ready)
                assert number == 0
                levels = counts(world, "offline")
    dealt = {x: counts(world, "offline")[x] for x in prompts}
    assert len(dealt) == 6
    assert sum(dealt.values()) - levels.total() > 40
    assert max(dealt.values()) - min(dealt.values()) <= 1


@pytest.mark.parametrize("first", ["index", "sql"])
@pytest.mark.parametrize("then", ["index", "sql"])
def test_a_prompt_that_comes_with_a_restart_starts_level(world: World, first: str, then: str) -> None:
    numbers = EPOCHS | {"groups_per_batch": 2, "sampler": first}
    first_of = stock(world, 4)
    late = max(first_of)
    with world.engine.begin() as connection:
        hidden = trajectories.c.prompt_id == late
        connection.execute(update(trajectories).where(hidden).values(policy_version=-100))
    running = world.open(**numbers)
    for batch_id in range(1, 10):
        running.turns(1)
        world.report(batch_id, policy_version=10)
    before = counts(world, "offline")
    assert min(before.values()) >= 4
    with world.engine.begin() as connection:
        connection.execute(update(trajectories).where(hidden).values(policy_version=9))
    again = world.open(**numbers | {"sampler": then})
    for batch_id in range(10, 15):
        again.turns(1)
        world.report(batch_id, policy_version=10)
    new = counts(world, "offline")
    assert len(new) == 4
    assert max(new.values()) - min(new.values()) <= 1


def test_prompts_that_come_twice_in_a_batch_are_dealt_evenly_too(world: World) -> None:
    numbers = EPOCHS | {"groups_per_batch": 4, "most_on_policy_probability": 0.5}
    draw = by_sql(world, world.settings(**numbers), stock(world, 2))
    for batch_id in range(1, 41):
        assert Counter(Counter(group.prompt_id for group in draw(batch_id)).values()) == {2: 2}
        offline = counts(world, "offline")
        assert max(offline.values()) - min(offline.values()) <= 1


def test_a_deck_that_is_empty_for_a_while_keeps_its_level(world: World) -> None:
    numbers = EPOCHS | {"groups_per_batch": 2, "most_on_policy_probability": 1.0}
    first_of = stock(world, 3)
    draw = by_sql(world, world.settings(**numbers), first_of)
    for batch_id in range(1, 10):
        draw(batch_id)
    with world.engine.begin() as connection:  # a newer version has said too little: nobody is online
        newest = update(trajectories).where(trajectories.c.trajectory_id == first_of[max(first_of)] + 7)
        connection.execute(newest.values(policy_version=10))
    assert {group.kind for group in draw(10)} == {"fallback"}
    with world.reading() as connection:
        assert connection.execute(select(sampler_state.c.online_floor)).scalar_one() == 6


def test_where_nothing_is_ready_sql_draws_nothing_and_moves_nothing(world: World) -> None:
    sampler = SqlSampler(world.lease.long_transaction, world.settings(), seed_of(RUN))
    assert sampler.batch(1) is None
    fill(world, [(VERSIONS[:2], REWARDS[:2])] * 3)  # stale
    assert sampler.batch(1) is None
    assert world.count(decks) == world.count(draws) == 0


def test_an_index_that_is_ahead_of_the_tables_is_a_reason_not_to_draw(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    stock(world, 4)
    running = world.open(sampler="sql", min_size=0)
    with world.engine.begin() as connection:
        connection.execute(update(trajectories).values(policy_version=trajectories.c.policy_version - 1_000))
    for _ in range(5):
        world.now += 1.0
        running.turns(2)
    assert (status(world)["blocked"], status(world)["ready_prompts"]) == ("index_ahead", 4)
    assert [record.message for record in caplog.records].count("the index holds prompts that the tables do not") == 1
    assert world.broker.groups() == []
    assert world.count(batches) == 0
    with world.engine.begin() as connection:
        connection.execute(update(trajectories).values(policy_version=trajectories.c.policy_version + 1_000))
    running.turns(1)
    assert world.broker.groups() == []  # it asks the tables once a second, not at every turn
    world.now += 1.0
    running.turns(1)
    assert sorted({group.batch_id for group in world.broker.groups()}) == [1, 2]
    assert status(world)["blocked"] == "in_flight"


def test_a_task_paused_a_moment_ago_is_not_drawn_in_sql(world: World) -> None:
    stock(world, 4)
    running = world.open(sampler="sql", min_size=0)
    with world.engine.begin() as connection:
        connection.execute(update(tasks).values(state="paused"))
    running.turns(1)
    assert world.broker.groups() == []
    with world.engine.begin() as connection:
        connection.execute(update(tasks).values(state="active"))
    world.now += 5.0
    running.turns(2)
    assert len(world.broker.groups()) == 4


def test_a_task_that_a_newer_program_stored_is_not_drawn_in_sql(world: World) -> None:
    stock(world, 4)
    sampler = SqlSampler(world.lease.long_transaction, world.settings(), seed_of(RUN))
    assert sampler.batch(1) is not None
    with world.engine.begin() as connection:
        connection.execute(text("UPDATE tasks SET spec = spec || '{\"unheard_of\": 1}'"))
    assert sampler.batch(1) is None


def test_a_draw_of_the_index_that_fails_stops_the_buffer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stock(world, 4)
    running = world.open(min_size=0)

    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Sampler, "draw", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        running.turns(1)
    assert world.count(batches) == 0


def test_sql_draws_as_long_as_it_takes_under_its_lease(world: World) -> None:
    with world.lease.long_transaction() as connection:
        connection.execute(text("UPDATE leases SET expires_at = now() - interval '1 minute'"))
    with world.reading() as connection:
        assert connection.execute(text("SELECT expires_at > now() FROM leases")).scalar_one()
