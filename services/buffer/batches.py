"""Batches as rows: a draw is recorded, with why it was drawn, before it is sent, and is always sent from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
from sqlalchemy import (
    BigInteger,
    Connection,
    Double,
    Integer,
    Row,
    SmallInteger,
    Text,
    delete,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import REAL
from sqlalchemy.dialects.postgresql import insert as upsert

from services.buffer.arrays import any_of, table_of
from services.buffer.payload_cache import Payload, PayloadCache
from services.buffer.references import load_ref_logprobs
from services.buffer.sampling import Batch, DeckName, DeckState, GroupDraw
from services.buffer.state_tables import decks, sampler_state
from services.buffer.tables import batches, draws, payloads, prompts, runs, tasks
from tba_common.messages import Draw, Group
from tba_common.tasks import Task


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the tables know of the batches at a start."""

    untrained: dict[int, bool]  # batch_id, ascending: was it sent?
    next_batch_id: int


def record(connection: Connection, run_id: str, batch_id: int, drawn: Batch) -> None:
    """Write a batch, its draws, and how far they moved the decks, the limiter and the tasks' step counts.

    A batch of this id is replaced: its trajectories are gone, so that it could not be sent as it was.
    """
    for table in (draws, batches):
        connection.execute(delete(table).where(table.c.run_id == run_id, table.c.batch_id == batch_id))
    groups = drawn.groups
    task_steps = _count_tasks(connection, {group.task_id for group in groups})
    described = [_describe(group, task_steps[group.task_id]) for group in groups]
    batch = {"run_id": run_id, "batch_id": batch_id, "policy_version": drawn.version, "groups": described}
    connection.execute(insert(batches).values(batch))
    _insert_draws(connection, run_id, batch_id, groups)
    _save_decks(connection, run_id, drawn.decks)
    samples = sum(len(group.rows) for group in groups)
    state = {
        "samples": sampler_state.c.samples + samples,
        "online_floor": drawn.decks["online"].floor,
        "offline_floor": drawn.decks["offline"].floor,
    }
    connection.execute(update(sampler_state).where(sampler_state.c.run_id == run_id).values(state))


def _count_tasks(connection: Connection, task_ids: set[int]) -> dict[int, int]:
    """Count one more batch for each task; return how many there were before."""
    mine = update(tasks).where(tasks.c.task_id == any_of(task_ids)).values(task_steps=tasks.c.task_steps + 1)
    rows = connection.execute(mine.returning(tasks.c.task_id, tasks.c.task_steps))
    return {row.task_id: row.task_steps - 1 for row in rows}


def _describe(group: GroupDraw, task_step: int) -> dict[str, Any]:
    return {
        "prompt_id": group.prompt_id,
        "task_id": group.task_id,
        "task_step": task_step,
        "kind": group.kind,
        "available": group.available,
        "distinct": group.distinct,
        "kappa": group.picks.kappa if np.isfinite(group.picks.kappa) else None,  # none: everything was drawn
        "log_normalizer": group.picks.log_normalizer,
        "prompt_logprob": group.prompt_logprob,
    }


def _insert_draws(connection: Connection, run_id: str, batch_id: int, groups: Sequence[GroupDraw]) -> None:
    sizes = [len(group.rows) for group in groups]
    rows = np.concatenate([group.rows for group in groups])
    given = table_of(
        group_index=(SmallInteger(), np.repeat(np.arange(len(groups)), sizes).tolist()),
        position=(SmallInteger(), [k for size in sizes for k in range(size)]),
        trajectory_id=(BigInteger(), rows["trajectory_id"].tolist()),
        draw_logprob=(Double(), np.concatenate([g.picks.draw_logprobs for g in groups]).tolist()),
        marginal_logprob=(Double(), np.concatenate([g.picks.marginal_logprobs for g in groups]).tolist()),
        reward=(REAL(), rows["reward"].tolist()),
        policy_version=(Integer(), rows["version"].tolist()),
    )
    names = ["run_id", "batch_id", *(c.name for c in given.c)]
    source = select(literal(run_id), literal(batch_id), *given.c)
    connection.execute(insert(draws).from_select(names, source))


def _save_decks(connection: Connection, run_id: str, moved: Mapping[DeckName, DeckState]) -> None:
    counts = [(name, prompt_id, dealt) for name, deck in moved.items() for prompt_id, dealt in deck.dealt.items()]
    given = table_of(
        deck=(Text(), [name for name, _, _ in counts]),
        prompt_id=(BigInteger(), [prompt_id for _, prompt_id, _ in counts]),
        dealt=(Integer(), [dealt for _, _, dealt in counts]),
    )
    statement = upsert(decks).from_select(["run_id", *(c.name for c in given.c)], select(literal(run_id), *given.c))
    keys = [decks.c.run_id, decks.c.deck, decks.c.prompt_id]
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_={"dealt": statement.excluded.dealt}))


def load_recorded(connection: Connection, run_id: str) -> Recorded:
    """Return the batches that are not trained, and the number of the next one."""
    mine = batches.c.run_id == run_id
    query = select(batches.c.batch_id, batches.c.sent_at).where(mine, batches.c.trained_step.is_(None))
    untrained = {r.batch_id: r.sent_at is not None for r in connection.execute(query.order_by(batches.c.batch_id))}
    newest = select(func.coalesce(func.max(batches.c.batch_id), 0)).where(mine).scalar_subquery()
    checkpoint = select(runs.c.checkpoint_batch_id).where(runs.c.run_id == run_id).scalar_subquery()
    last = connection.execute(select(func.greatest(newest, checkpoint))).scalar_one()
    return Recorded(untrained, last + 1)


def mark_sent(connection: Connection, run_id: str, batch_id: int) -> None:
    """Take note that the broker has a batch."""
    mine = update(batches).where(batches.c.run_id == run_id, batches.c.batch_id == batch_id)
    connection.execute(mine.values(sent_at=func.now()))


def load_groups(
    connection: Connection, run_id: str, batch_id: int, specs: Mapping[int, Task], cache: PayloadCache
) -> list[Group] | None:
    """Return a recorded batch as messages, or None when a trajectory of it is not stored any more."""
    described = connection.execute(
        select(batches.c.groups).where(batches.c.run_id == run_id, batches.c.batch_id == batch_id)
    ).scalar_one()
    of_batch = select(draws).where(draws.c.run_id == run_id, draws.c.batch_id == batch_id)
    rows = connection.execute(of_batch.order_by(draws.c.group_index, draws.c.position)).all()
    found = _load_payloads(connection, run_id, {row.trajectory_id for row in rows}, cache)
    if not all(row.trajectory_id in found for row in rows):
        return None
    ref_logprobs = load_ref_logprobs(connection, run_id, found.keys(), specs)
    prompt_ids = [group["prompt_id"] for group in described]
    tokens = select(prompts.c.prompt_id, prompts.c.token_ids).where(prompts.c.prompt_id == any_of(prompt_ids))
    prompt_tokens = {row.prompt_id: row.token_ids for row in connection.execute(tokens)}
    return [
        Group(
            run_id=run_id,
            batch_id=batch_id,
            index=index,
            size=len(described),
            task_id=described[index]["task_id"],
            task_step=described[index]["task_step"],
            prompt_id=described[index]["prompt_id"],
            kind=described[index]["kind"],
            prompt_token_ids=np.frombuffer(prompt_tokens[described[index]["prompt_id"]], dtype="<i4"),
            temperature=specs[described[index]["task_id"]].sampling.temperature,
            target=specs[described[index]["task_id"]].target,
            draws=tuple(_draw(row, found[row.trajectory_id], ref_logprobs.get(row.trajectory_id)) for row in drawn),
        )
        for index, drawn in groupby(rows, key=attrgetter("group_index"))
    ]


def _load_payloads(
    connection: Connection, run_id: str, trajectory_ids: set[int], cache: PayloadCache
) -> dict[int, Payload]:
    """Return the payloads that are stored, of which the cache knows the recent ones."""
    found = cache.get(trajectory_ids)
    missing = trajectory_ids - found.keys()
    if missing:
        mine = payloads.c.run_id == run_id, payloads.c.trajectory_id == any_of(missing)
        query = select(payloads.c.trajectory_id, payloads.c.token_ids, payloads.c.logprobs).where(*mine)
        read = {row.trajectory_id: (row.token_ids, row.logprobs) for row in connection.execute(query)}
        cache.put(read)
        found |= read
    return found


def _draw(row: Row[Any], payload: Payload, ref_logprob: float | None) -> Draw:
    token_ids, logprobs = payload
    return Draw(
        trajectory_id=row.trajectory_id,
        token_ids=np.frombuffer(token_ids, dtype="<i4"),
        logprobs=np.frombuffer(logprobs, dtype="<f4"),
        reward=row.reward,
        policy_version=row.policy_version,
        draw_logprob=row.draw_logprob,
        ref_logprob=ref_logprob,
    )
