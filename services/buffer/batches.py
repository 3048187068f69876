"""Batches as rows: a draw is recorded, with why it was drawn, before it is sent, and is always sent from its record."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import attrgetter
from typing import Any, Final

import numpy as np
from sqlalchemy import (
    Connection,
    Row,
    func,
    select,
    text,
    update,
)

from services.buffer.arrays import driver_of, text_of
from services.buffer.payload_cache import Payload, PayloadCache
from services.buffer.references import load_ref_logprobs
from services.buffer.sampling import Batch, DeckName, DeckState, GroupDraw
from services.buffer.tables import batches, runs
from tba_common.messages import Draw, Group
from tba_common.tasks import Task
from tba_common.topics import BATCHES

_DRAW_BYTES: Final = 256  # of one, beside its tokens
_GROUP_BYTES: Final = BATCHES.max_message_bytes * 3 // 4  # the rest is for the prompt
_FORGET: Final = text("""
    WITH gone AS (DELETE FROM draws WHERE run_id = :run_id AND batch_id = :batch_id)
    DELETE FROM batches WHERE run_id = :run_id AND batch_id = :batch_id
""")
_SAVE_DECKS: Final = text("""
    INSERT INTO decks (run_id, deck, prompt_id, dealt)
    SELECT :run_id, unnest(CAST(:decks AS text[])), unnest(CAST(:prompt_ids AS bigint[])),
        unnest(CAST(:dealt AS int[]))
    ON CONFLICT (run_id, deck, prompt_id) DO UPDATE SET dealt = excluded.dealt
""")
_MOVE: Final = text("""
    UPDATE sampler_state SET samples = samples + :samples, online_floor = :online, offline_floor = :offline
    WHERE run_id = :run_id
""")
_COUNT_TASKS: Final = text("""
    UPDATE tasks SET task_steps = task_steps + 1 WHERE task_id = ANY(CAST(:ids AS bigint[]))
    RETURNING task_id, task_steps - 1
""")
_RECORD: Final = text("""
    INSERT INTO batches (run_id, batch_id, policy_version, groups)
    VALUES (:run_id, :batch_id, :version, CAST(:groups AS jsonb))
""")
_GROUPS: Final = text("SELECT groups FROM batches WHERE run_id = :run_id AND batch_id = :batch_id")
_DRAWS: Final = text("""
    SELECT group_index, trajectory_id, reward, policy_version, draw_logprob FROM draws
    WHERE run_id = :run_id AND batch_id = :batch_id ORDER BY group_index, position
""")
_PROMPTS: Final = text("SELECT prompt_id, token_ids FROM prompts WHERE prompt_id = ANY(CAST(:ids AS bigint[]))")
_COPY_DRAWS: Final = """
    COPY draws (run_id, batch_id, group_index, position, trajectory_id, draw_logprob, marginal_logprob, reward,
        policy_version) FROM STDIN (FORMAT BINARY)
"""
_PAYLOADS: Final = """
    SELECT trajectory_id, token_ids, logprobs FROM payloads WHERE run_id = %s AND trajectory_id = ANY(%s::bigint[])
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the tables know of the batches at a start."""

    untrained: dict[int, bool]  # batch_id, ascending: was it sent?
    next_batch_id: int


def record(connection: Connection, run_id: str, batch_id: int, drawn: Batch) -> None:
    """Write a batch, its draws, and how far they moved the decks, the limiter and the tasks' step counts.

    A batch of this id is replaced: its trajectories are gone, so that it could not be sent as it was.
    """
    connection.execute(_FORGET, {"run_id": run_id, "batch_id": batch_id})
    groups = drawn.groups
    task_steps = _count_tasks(connection, {group.task_id for group in groups})
    described = [_describe(group, task_steps[group.task_id]) for group in groups]
    batch = {"run_id": run_id, "batch_id": batch_id, "version": drawn.version, "groups": json.dumps(described)}
    connection.execute(_RECORD, batch)
    _insert_draws(connection, run_id, batch_id, groups)
    _save_decks(connection, run_id, drawn.decks)
    state = {"samples": sum(len(group.rows) for group in groups)}
    floors = {name: deck.floor for name, deck in drawn.decks.items()}
    connection.execute(_MOVE, {"run_id": run_id} | state | floors)


def _count_tasks(connection: Connection, task_ids: set[int]) -> dict[int, int]:
    """Count one more batch for each task; return how many there were before."""
    return {row[0]: row[1] for row in connection.execute(_COUNT_TASKS, {"ids": text_of(task_ids)})}


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
    with driver_of(connection).cursor() as cursor, cursor.copy(_COPY_DRAWS) as copy:
        copy.set_types(["text", "int4", "int2", "int2", "int8", "float8", "float8", "float4", "int4"])
        for index, group in enumerate(groups):
            columns = (
                group.rows["trajectory_id"].tolist(),
                group.picks.draw_logprobs.tolist(),
                group.picks.marginal_logprobs.tolist(),
                group.rows["reward"].tolist(),
                group.rows["version"].tolist(),
            )
            for position, values in enumerate(zip(*columns, strict=True)):
                copy.write_row((run_id, batch_id, index, position, *values))


def _save_decks(connection: Connection, run_id: str, moved: Mapping[DeckName, DeckState]) -> None:
    counts = [(name, prompt_id, dealt) for name, deck in moved.items() for prompt_id, dealt in deck.dealt.items()]
    given = {
        "decks": text_of(name for name, _, _ in counts),
        "prompt_ids": text_of(prompt_id for _, prompt_id, _ in counts),
        "dealt": text_of(dealt for _, _, dealt in counts),
    }
    connection.execute(_SAVE_DECKS, {"run_id": run_id} | given)


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
    asked = {"run_id": run_id, "batch_id": batch_id}
    described = connection.execute(_GROUPS, asked).scalar_one()
    rows = connection.execute(_DRAWS, asked).all()
    found = _load_payloads(connection, run_id, {row.trajectory_id for row in rows}, cache)
    if not all(row.trajectory_id in found for row in rows):
        return None
    ref_logprobs = load_ref_logprobs(connection, run_id, found.keys(), specs)
    prompt_ids = text_of(group["prompt_id"] for group in described)
    prompt_tokens = {row[0]: row[1] for row in connection.execute(_PROMPTS, {"ids": prompt_ids})}
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
            draws=_what_fits(
                [_draw(row, found[row.trajectory_id], ref_logprobs.get(row.trajectory_id)) for row in drawn]
            ),
        )
        for index, drawn in groupby(rows, key=attrgetter("group_index"))
    ]


def _what_fits(draws: Sequence[Draw]) -> tuple[Draw, ...]:
    """Leave out the last draws of a group that no record could hold: many, of very long trajectories."""
    ends = accumulate(draw.token_ids.nbytes + draw.logprobs.nbytes + _DRAW_BYTES for draw in draws)
    fitting = sum(end <= _GROUP_BYTES for end in ends)
    if fitting < len(draws):
        fields = {"draws": len(draws), "fitting": fitting, "bytes": _GROUP_BYTES}
        log.warning("group cut: a record holds no more; lower TBA_TRAJECTORIES_PER_GROUP", extra=fields)
    return tuple(draws[:fitting])


def _load_payloads(
    connection: Connection, run_id: str, trajectory_ids: set[int], cache: PayloadCache
) -> dict[int, Payload]:
    """Return the payloads that are stored, of which the cache knows the recent ones."""
    found = cache.get(trajectory_ids)
    missing = trajectory_ids - found.keys()
    if missing:
        with driver_of(connection).cursor(binary=True) as cursor:  # as text, bytes are twice as long
            rows = cursor.execute(_PAYLOADS, (run_id, list(missing)))
            read = {trajectory_id: (token_ids, logprobs) for trajectory_id, token_ids, logprobs in rows}
        cache.put(read)
        found |= read
    return found


def _draw(row: Row[Any], payload: Payload, ref_logprob: float | None) -> Draw:
    """Not validated again: it was when it came, and a batch has hundreds."""
    token_ids, logprobs = payload
    return Draw.model_construct(
        trajectory_id=row.trajectory_id,
        token_ids=np.frombuffer(token_ids, dtype="<i4"),
        logprobs=np.frombuffer(logprobs, dtype="<f4"),
        reward=row.reward,
        policy_version=row.policy_version,
        draw_logprob=row.draw_logprob,
        ref_logprob=ref_logprob,
    )
