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
    literal,
    select,
    text,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB, REAL, insert

from services.buffer.arrays import table_of, text_of
from services.buffer.arrivals import Key, Order, Outcome, Row
from services.buffer.tables import evaluations, prompts
from services.buffer.trajectory_rows import Stored

# As text, because building such a statement anew costs as much as all else it does.
_ORDERS: Final = text("""
    SELECT issue_id, issues.task_id, prompt_id, purpose, policy_version, completions, state = 'in_flight', token_ids
    FROM issues JOIN prompts USING (prompt_id)
    WHERE run_id = :run_id AND issue_id = ANY(CAST(:issue_ids AS bigint[])) AND purpose IN ('train', 'eval')
""")
_SETTLE: Final = text("""
    UPDATE issues SET state = 'settled', settled_at = now(), stored = ended.stored, duplicates = ended.duplicates,
        dead_lettered = ended.dead_lettered, expired = ended.expired
    FROM (
        SELECT unnest(CAST(:issue_ids AS bigint[])), unnest(CAST(:stored AS int[])),
            unnest(CAST(:duplicates AS int[])), unnest(CAST(:dead_lettered AS int[])),
            unnest(CAST(:expired AS int[]))
    ) AS ended (issue_id, stored, duplicates, dead_lettered, expired)
    WHERE issues.issue_id = ended.issue_id AND state = 'in_flight'
""")
_SAVE_PROGRESS: Final = text("""
    WITH counted AS (UPDATE sampler_state SET inserts = inserts + :inserts WHERE run_id = :run_id AND :inserts > 0)
    INSERT INTO input_offsets (run_id, topic, partition, next_offset)
    SELECT :run_id, unnest(CAST(:topics AS text[])), unnest(CAST(:partitions AS int[])),
        unnest(CAST(:next_offsets AS bigint[]))
    ON CONFLICT (run_id, topic, partition) DO UPDATE SET next_offset = excluded.next_offset
""")
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
    """Return what the tables know about these issues of the run, but for those that judged.py settles."""
    found = connection.execute(_ORDERS, {"run_id": run_id, "issue_ids": text_of(issue_ids)}) if issue_ids else ()
    return {row[0]: Order(*row) for row in found}


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
    if settlements:
        ended = {name: text_of(getattr(s, name) for s in settlements) for name in _SETTLED}
        connection.execute(_SETTLE, {"issue_ids": text_of(s.issue_id for s in settlements)} | ended)


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


def save_progress(connection: Connection, run_id: str, *, inserts: int, offsets: Mapping[tuple[str, int], int]) -> None:
    """Count trajectories taken in, for the limiter, and remember where to read on.

    An offset may go back: a broker that forgot starts again from 0.
    """
    given = {
        "inserts": inserts,
        "topics": [topic for topic, _ in offsets],
        "partitions": text_of(partition for _, partition in offsets),
        "next_offsets": text_of(offsets.values()),
    }
    connection.execute(_SAVE_PROGRESS, {"run_id": run_id} | given)
