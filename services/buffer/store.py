"""The tables' side of ingest: rows in bulk, each statement one round trip for the whole batch.

Everything here runs in the caller's transaction (lease.py). One buffer writes a run, so what was looked up at the
start of a transaction still holds at its end.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import psycopg
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    func,
    literal,
    select,
    text,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB, REAL, insert

from services.buffer.arrays import any_of, table_of, text_of
from services.buffer.arrivals import Key, Order, Outcome, Row
from services.buffer.state_tables import input_offsets, sampler_state
from services.buffer.tables import evaluations, issues, payloads, prompts

# What a second arrival of the same tokens brings up to date, if its version is not older.
_UPSERT: Final = text("""
    INSERT INTO trajectories (run_id, trajectory_id, task_id, prompt_id, issue_id, fingerprint, policy_version, reward,
        tokens, temperature, top_p, finish_reason, scores, spans)
    SELECT :run_id, trajectory_id, task_id, prompt_id, issue_id, fingerprint, policy_version, reward,
        tokens, temperature, top_p, finish_reason, scores, nullif(spans, 'null')
    FROM ROWS FROM (
        unnest(CAST(:trajectory_ids AS bigint[])), unnest(CAST(:task_ids AS bigint[])),
        unnest(CAST(:prompt_ids AS bigint[])), unnest(CAST(:issue_ids AS bigint[])),
        unnest(CAST(:fingerprints AS uuid[])), unnest(CAST(:policy_versions AS int[])),
        unnest(CAST(:rewards AS real[])), unnest(CAST(:lengths AS int[])),
        unnest(CAST(:temperatures AS real[])), unnest(CAST(:top_ps AS real[])),
        unnest(CAST(:finish_reasons AS text[])), jsonb_array_elements(CAST(:scores AS jsonb)),
        jsonb_array_elements(CAST(:spans AS jsonb))
    ) AS given (trajectory_id, task_id, prompt_id, issue_id, fingerprint, policy_version, reward,
        tokens, temperature, top_p, finish_reason, scores, spans)
    ON CONFLICT (prompt_id, fingerprint, run_id) DO UPDATE SET policy_version = excluded.policy_version,
        reward = excluded.reward, temperature = excluded.temperature, top_p = excluded.top_p,
        finish_reason = excluded.finish_reason, scores = excluded.scores, spans = excluded.spans
    WHERE trajectories.policy_version <= excluded.policy_version
    RETURNING prompt_id, uuid_send(fingerprint) AS fingerprint, trajectory_id
""").columns(Column("prompt_id", BigInteger), Column("fingerprint", LargeBinary), Column("trajectory_id", BigInteger))
_SETTLED: Final = ("stored", "duplicates", "dead_lettered", "expired")


@dataclass(frozen=True, slots=True)
class Stored:
    """A trajectory as it is in the tables now; `is_new` if this transaction brought it."""

    trajectory_id: int
    is_new: bool


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


def store_rows(connection: Connection, run_id: str, rows: Sequence[Row]) -> dict[Key, Stored]:
    """Insert trajectories or refresh those whose tokens are stored; return the ones that changed, by key.

    `rows` hold each key once. A stored trajectory that is newer stays as it is and is not returned. It keeps its
    id, and the issue that first brought it.
    """
    if not rows:
        return {}
    ids = _next_ids(connection, len(rows))
    given = {
        "run_id": run_id,
        "trajectory_ids": text_of(ids),
        "task_ids": text_of(row.task_id for row in rows),
        "prompt_ids": text_of(row.prompt_id for row in rows),
        "issue_ids": text_of(row.issue_id for row in rows),
        "fingerprints": text_of(row.fingerprint.hex() for row in rows),
        "policy_versions": text_of(row.policy_version for row in rows),
        "rewards": text_of(row.reward for row in rows),
        "lengths": text_of(row.tokens for row in rows),
        "temperatures": text_of(row.temperature for row in rows),
        "top_ps": text_of(row.top_p for row in rows),
        "finish_reasons": text_of(row.finish_reason for row in rows),
        "scores": json.dumps([row.scores for row in rows]),
        "spans": json.dumps([row.spans or None for row in rows]),
    }
    fresh = set(ids)
    found = {(x, said): Stored(i, i in fresh) for x, said, i in connection.execute(_UPSERT, given)}
    changed = [(row, found[row.key]) for row in rows if row.key in found]
    _copy_payloads(connection, run_id, [(s.trajectory_id, row) for row, s in changed if s.is_new])
    _refresh_payloads(connection, run_id, [(s.trajectory_id, row) for row, s in changed if not s.is_new])
    return found


def _next_ids(connection: Connection, count: int) -> list[int]:
    """Take ids for new rows. Those of rows that turn out to be stored already are never used."""
    taken = text("SELECT array_agg(nextval('trajectory_ids')) FROM generate_series(1, :count)")
    return list(connection.execute(taken, {"count": count}).scalar_one())


def _copy_payloads(connection: Connection, run_id: str, rows: Sequence[tuple[int, Row]]) -> None:
    if not rows:
        return
    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    columns = "trajectory_id, run_id, token_ids, logprobs, text"
    with driver.cursor() as cursor, cursor.copy(f"COPY payloads ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int8", "text", "bytea", "bytea", "text"])
        for trajectory_id, row in rows:
            copy.write_row((trajectory_id, run_id, row.token_ids, row.logprobs, row.text))


def _refresh_payloads(connection: Connection, run_id: str, rows: Sequence[tuple[int, Row]]) -> None:
    if not rows:
        return
    given = table_of(
        trajectory_id=(BigInteger(), [trajectory_id for trajectory_id, _ in rows]),
        logprobs=(LargeBinary(), [row.logprobs for _, row in rows]),
        text=(Text(), [row.text for _, row in rows]),
    )
    same = (payloads.c.trajectory_id == given.c.trajectory_id) & (payloads.c.run_id == run_id)
    connection.execute(update(payloads).where(same).values(logprobs=given.c.logprobs, text=given.c.text))


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
        scores=(Text(), [json.dumps(row.scores) for row in rows]),
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
