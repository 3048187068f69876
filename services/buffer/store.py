"""The tables' side of ingest: rows in bulk, each statement one round trip for the whole batch.

Everything here runs in the caller's transaction (lease.py). One buffer writes a run, so what was looked up at the
start of a transaction still holds at its end.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from sqlalchemy import (
    BigInteger,
    Connection,
    Double,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    func,
    literal,
    select,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB, REAL, insert

from services.buffer.arrays import any_of, table_of
from services.buffer.arrivals import Key, Order, Outcome, Row
from services.buffer.state_tables import input_offsets, sampler_state
from services.buffer.tables import evaluations, issues, prompts
from services.buffer.trajectory_rows import Stored

_SETTLED: Final = ("stored", "duplicates", "dead_lettered", "expired")


@dataclass(frozen=True, slots=True)
class Settlement:
    """How the completions of one order ended, in the tables' words; they sum to what was ordered."""

    issue_id: int
    stored: int
    duplicates: int
    dead_lettered: int
    expired: int


def find_orders(connection: Connection, run_id: str, issue_ids: Collection[int]) -> dict[int, Order]:
    """Return what the tables know about these issues of the run."""
    query = (
        select(
            issues.c.issue_id,
            issues.c.task_id,
            issues.c.prompt_id,
            issues.c.purpose,
            issues.c.policy_version,
            issues.c.completions,
            issues.c.state == "in_flight",
            prompts.c.token_ids,
        )
        .join(prompts, prompts.c.prompt_id == issues.c.prompt_id)
        .where(
            issues.c.run_id == run_id,
            issues.c.issue_id == any_of(issue_ids),
            issues.c.purpose.in_(("train", "eval")),  # judged.py settles the others
        )
    )
    return {row.issue_id: Order(*row) for row in connection.execute(query)} if issue_ids else {}


def store_evaluations(connection: Connection, run_id: str, rows: Sequence[Row]) -> None:
    """Insert the answers to evaluation prompts."""
    if not rows:
        return
    given = table_of(
        issue_id=(BigInteger(), [row.issue_id for row in rows]),
        index=(SmallInteger(), [row.completion for row in rows]),
        task_id=(BigInteger(), [row.task_id for row in rows]),
        prompt_id=(BigInteger(), [row.prompt_id for row in rows]),
        policy_version=(Integer(), [row.policy_version for row in rows]),
        reward=(REAL(), [row.reward for row in rows]),
        policy_logprob=(Double(), [np.frombuffer(row.logprobs, "<f4").sum(dtype=np.float64) for row in rows]),
        text=(Text(), [row.text for row in rows]),
        scores=(Text(), [row.scores for row in rows]),
    )
    values = [sql_cast(c, JSONB) if c.name == "scores" else c for c in given.c]
    names = ["run_id", *(c.name for c in given.c)]
    connection.execute(insert(evaluations).from_select(names, select(literal(run_id), *values)))


def settle(connection: Connection, settlements: Sequence[Settlement]) -> None:
    """Close orders with how their completions ended."""
    if not settlements:
        return
    given = table_of(
        issue_id=(BigInteger(), [s.issue_id for s in settlements]),
        **{name: (Integer(), [getattr(s, name) for s in settlements]) for name in _SETTLED},
    )
    is_open = (issues.c.issue_id == given.c.issue_id) & (issues.c.state == "in_flight")
    ended = {name: given.c[name] for name in _SETTLED}
    connection.execute(update(issues).where(is_open).values(state="settled", settled_at=func.now(), **ended))


def settlement_of(outcome: Outcome, first_issue: Mapping[Key, int], stored: Mapping[Key, Stored]) -> Settlement:
    """Count an order's outcome: a key is stored by the first completion that brought it, else it is a duplicate."""
    issue_id = outcome.order.issue_id
    new = sum(
        first_issue[key] == issue_id and key in stored and stored[key].is_new for key in dict.fromkeys(outcome.kept)
    )
    return Settlement(
        issue_id,
        stored=new + outcome.evaluated,
        duplicates=len(outcome.kept) - new,
        dead_lettered=outcome.dead_lettered,
        expired=outcome.expired,
    )


def keep_prompt_tokens(connection: Connection, token_ids: Mapping[int, bytes]) -> None:
    """Remember the tokens of prompts that were seen for the first time."""
    if token_ids:
        given = table_of(prompt_id=(BigInteger(), [*token_ids]), token_ids=(LargeBinary(), [*token_ids.values()]))
        same = prompts.c.prompt_id == given.c.prompt_id
        connection.execute(update(prompts).where(same).values(token_ids=given.c.token_ids))


def add_inserts(connection: Connection, run_id: str, inserts: int) -> None:
    """Count trajectories taken in, for the limiter."""
    mine = update(sampler_state).where(sampler_state.c.run_id == run_id)
    connection.execute(mine.values(inserts=sampler_state.c.inserts + inserts))


def save_offsets(connection: Connection, run_id: str, offsets: Mapping[tuple[str, int], int]) -> None:
    """Remember where to read on. An offset may go back: a broker that forgot starts again from 0."""
    if offsets:
        given = table_of(
            topic=(Text(), [topic for topic, _ in offsets]),
            partition=(Integer(), [partition for _, partition in offsets]),
            next_offset=(BigInteger(), [*offsets.values()]),
        )
        names = ["run_id", *(c.name for c in given.c)]
        statement = insert(input_offsets).from_select(names, select(literal(run_id), *given.c))
        keys = [input_offsets.c.run_id, input_offsets.c.topic, input_offsets.c.partition]
        offset = {"next_offset": statement.excluded.next_offset}
        connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=offset))
