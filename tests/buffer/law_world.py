"""The world of the law suite in the tables, and who draws from it: the index, SQL, and the whole dispatch of each."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from sqlalchemy import insert, select, update

from services.buffer.batches import record
from services.buffer.dispatch import Dispatcher
from services.buffer.index import Index
from services.buffer.limiter import Limits
from services.buffer.orders import load_tasks
from services.buffer.pacing import Backlog
from services.buffer.payload_cache import PayloadCache
from services.buffer.restore import restore, seed_of
from services.buffer.sampling import Draws, Sampler
from services.buffer.settings import BufferSettings
from services.buffer.sql_sampler import SqlSampler
from services.buffer.tables import batches, payloads, prompts, runs, trajectories
from services.buffer.tables import draws as drawn_rows
from tba_common.messages import Group
from tests.buffer.law_suite import LEARNER_VERSION, Seen, seen
from tests.buffer.world import RUN, World, step

Draw = Callable[[int], list[Seen]]
Content = tuple[Sequence[int], Sequence[float]]  # of a prompt: versions and rewards of its trajectories

_ENOUGH: Final = 1_000_000  # inserts, so that no limiter stands in the way


def fill(world: World, contents: Sequence[Content]) -> dict[int, int]:
    """Store the trajectories of some prompts; return the id of each prompt's first."""
    task_id = world.add_task(train=len(contents))
    tokens = {"token_ids": np.array([1, 2], "<i4").tobytes(), "logprobs": np.zeros(2, "<f4").tobytes()}
    with world.engine.begin() as connection:
        connection.execute(update(runs).values(policy_version=LEARNER_VERSION))
        connection.execute(update(prompts).values(token_ids=tokens["token_ids"]))
        prompt_ids = connection.execute(select(prompts.c.prompt_id).order_by(prompts.c.prompt_id)).scalars().all()
        rows = [
            _row(task_id, prompt_id, version, reward)
            for prompt_id, content in zip(prompt_ids, contents, strict=True)
            for version, reward in zip(*content, strict=True)
        ]
        for trajectory_id, row in enumerate(rows, 1):
            row["trajectory_id"] = trajectory_id
        connection.execute(insert(trajectories), rows)
        stored = [{"trajectory_id": row["trajectory_id"], "run_id": RUN, "text": "", **tokens} for row in rows]
        connection.execute(insert(payloads), stored)
    return {row["prompt_id"]: row["trajectory_id"] for row in reversed(rows)}


def _row(task_id: int, prompt_id: int, version: int, reward: float) -> dict[str, Any]:
    return {
        "run_id": RUN,
        "task_id": task_id,
        "prompt_id": prompt_id,
        "issue_id": 1,
        "fingerprint": uuid.uuid4(),
        "policy_version": version,
        "reward": reward,
        "tokens": 2,
        "temperature": 1.0,
        "top_p": 1.0,
        "finish_reason": "eos",
        "scores": [],
    }


def by_index(world: World, settings: BufferSettings, first_of: dict[int, int]) -> Draw:
    """Draws from the index in memory."""
    sampler = _sampler(world, settings)
    return lambda batch_id: seen(sampler.draw(batch_id), first_of)


def by_sql(world: World, settings: BufferSettings, first_of: dict[int, int]) -> Draw:
    """Draws in PostgreSQL."""
    sampler = SqlSampler(world.lease.transaction, settings, seed_of(RUN))

    def draw(batch_id: int) -> list[Seen]:
        drawn = sampler.batch(batch_id)
        assert drawn is not None
        with world.lease.transaction() as connection:
            record(connection, RUN, batch_id, drawn)
        return seen(drawn.groups, first_of)

    return draw


def by_wire(world: World, settings: BufferSettings, first_of: dict[int, int]) -> Draw:
    """Draws of the index as the learner gets them."""
    sampler = _sampler(world, settings)
    return _by_wire(world, settings, first_of, sampler, sampler.index)


def by_sql_wire(world: World, settings: BufferSettings, first_of: dict[int, int]) -> Draw:
    """Draws in PostgreSQL as the learner gets them."""
    sql = SqlSampler(world.lease.long_transaction, settings, seed_of(RUN))
    return _by_wire(world, settings, first_of, sql, _sampler(world, settings).index)


def _by_wire(world: World, settings: BufferSettings, first_of: dict[int, int], draws: Draws, index: Index) -> Draw:
    """Recorded, sent, and told apart by what lies on the wire and in the record."""
    limits = Limits(
        groups=settings.groups_per_batch, min_size=0, samples_per_insert=1e9, max_staleness=4, trajectories=3
    )
    sent: list[Group] = []
    dispatcher = Dispatcher(
        world.lease,
        RUN,
        sent.extend,
        draws=draws,
        index=index,
        limits=limits,
        backlog=Backlog(),
        samples=0,
        resend_seconds=1e9,
        cache=PayloadCache(1 << 20),
    )
    dispatcher.load(0.0)
    with world.engine.connect() as connection:
        tasks = load_tasks(connection, RUN)

    def draw(batch_id: int) -> list[Seen]:
        dispatcher.reported([step(batch_id - 1)], 0.0)
        dispatcher.turn(0.0, inserts=_ENOUGH, trainable=settings.groups_per_batch, tasks=tasks)
        return _told(world, [group for group in sent if group.batch_id == batch_id], first_of)

    return draw


def _sampler(world: World, settings: BufferSettings) -> Sampler:
    with world.engine.connect() as connection:
        sampler = restore(connection, settings).sampler
        sampler.index.activate(frozenset(load_tasks(connection, RUN)))
    return sampler


def _told(world: World, groups: Sequence[Group], first_of: dict[int, int]) -> list[Seen]:
    batch_id = groups[0].batch_id
    with world.engine.connect() as connection:
        described = connection.execute(select(batches.c.groups).where(batches.c.batch_id == batch_id)).scalar_one()
        query = select(drawn_rows).where(drawn_rows.c.batch_id == batch_id)
        recorded = {(row.group_index, row.position): row for row in connection.execute(query)}
    return [
        Seen(
            group.prompt_id,
            group.kind,
            tuple(draw.trajectory_id - first_of[group.prompt_id] for draw in group.draws),
            tuple(draw.draw_logprob for draw in group.draws),
            tuple(recorded[group.index, k].marginal_logprob for k in range(len(group.draws))),
            -np.inf if described[group.index]["kappa"] is None else described[group.index]["kappa"],
            described[group.index]["prompt_logprob"],
        )
        for group in groups
    ]
