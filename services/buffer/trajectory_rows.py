"""Trajectories and their payloads on their way into the tables: new ones by COPY, known ones brought up to date.

COPY is several times cheaper than INSERT ... ON CONFLICT and knows no conflicts, so what is stored is looked up
first. One buffer writes a run, and holds its lease while it does (lease.py): nobody can store the same in between.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, Column, Connection, Integer, LargeBinary, text

from services.buffer.arrays import driver_of, text_of
from services.buffer.arrivals import Key, Row
from services.buffer.tables import ID_BLOCK

# The limit keeps the planner at one look into the index for each row, however small the table is when it plans.
_KNOWN: Final = text("""
    SELECT given.prompt_id, uuid_send(given.fingerprint) AS fingerprint, trajectory_id, policy_version
    FROM unnest(CAST(:prompt_ids AS bigint[]), CAST(:fingerprints AS uuid[])) AS given (prompt_id, fingerprint),
        LATERAL (
            SELECT trajectory_id, policy_version FROM trajectories
            WHERE run_id = :run_id AND prompt_id = given.prompt_id AND fingerprint = given.fingerprint LIMIT 1
        ) AS stored
""").columns(
    Column("prompt_id", BigInteger),
    Column("fingerprint", LargeBinary),
    Column("trajectory_id", BigInteger),
    Column("policy_version", Integer),
)
_BLOCKS: Final = text("SELECT nextval('trajectory_ids') FROM generate_series(1, :blocks)")
_REFRESH: Final = text("""
    WITH given (trajectory_id, policy_version, reward, temperature, top_p, finish_reason, scores, spans, logprobs,
        text) AS (
        SELECT unnest(CAST(:ids AS bigint[])), unnest(CAST(:policy_versions AS int[])),
            unnest(CAST(:rewards AS real[])), unnest(CAST(:temperatures AS real[])), unnest(CAST(:top_ps AS real[])),
            unnest(CAST(:finish_reasons AS text[])), jsonb_array_elements(CAST(:scores AS jsonb)),
            nullif(jsonb_array_elements(CAST(:spans AS jsonb)), 'null'), unnest(CAST(:logprobs AS bytea[])),
            unnest(CAST(:texts AS text[]))
    ), fresh AS (
        UPDATE payloads SET logprobs = given.logprobs, text = given.text FROM given
        WHERE payloads.trajectory_id = given.trajectory_id AND run_id = :run_id
    )
    UPDATE trajectories SET policy_version = given.policy_version, reward = given.reward, scores = given.scores,
        temperature = given.temperature, top_p = given.top_p, finish_reason = given.finish_reason, spans = given.spans
    FROM given WHERE trajectories.trajectory_id = given.trajectory_id AND run_id = :run_id
""")
_JSONB: Final = b"\x01"  # what its binary form begins with
# Column and type, for COPY. A value that is bytes already goes as it is: bytea, uuid and jsonb differ in name only.
_COLUMNS: Final = {
    "trajectory_id": "int8",
    "run_id": "text",
    "task_id": "int8",
    "prompt_id": "int8",
    "issue_id": "int8",
    "fingerprint": "bytea",
    "policy_version": "int4",
    "reward": "float4",
    "tokens": "int4",
    "temperature": "float4",
    "top_p": "float4",
    "finish_reason": "text",
    "scores": "bytea",
    "spans": "bytea",
}
_PAYLOAD_COLUMNS: Final = {
    "trajectory_id": "int8",
    "run_id": "text",
    "token_ids": "bytea",
    "logprobs": "bytea",
    "text": "text",
}


class Stored(NamedTuple):
    """A trajectory as it is in the tables now; `is_new` if this transaction brought it."""

    trajectory_id: int
    is_new: bool


def store_rows(connection: Connection, run_id: str, rows: Sequence[Row]) -> dict[Key, Stored]:
    """Insert trajectories or refresh those whose tokens are stored; return the ones that changed, by key.

    `rows` hold each key once. A stored trajectory that is newer stays as it is and is not returned. It keeps its
    id, and the issue that first brought it.
    """
    if not rows:
        return {}
    known = _find_known(connection, run_id, rows)
    new = [row for row in rows if row.key not in known]
    fresh = list(zip(_next_ids(connection, len(new)), new, strict=True))
    _copy(connection, run_id, fresh)
    changed = [(stored[0], row) for row in rows if (stored := known.get(row.key)) and stored[1] <= row.policy_version]
    _refresh(connection, run_id, changed)
    return {row.key: Stored(i, True) for i, row in fresh} | {row.key: Stored(i, False) for i, row in changed}


def _find_known(connection: Connection, run_id: str, rows: Sequence[Row]) -> dict[Key, tuple[int, int]]:
    """Return id and policy version of those rows that are stored."""
    given = {
        "run_id": run_id,
        "prompt_ids": text_of(row.prompt_id for row in rows),
        "fingerprints": text_of(row.fingerprint.hex() for row in rows),
    }
    return {(x, said): (i, version) for x, said, i, version in connection.execute(_KNOWN, given)}


def _next_ids(connection: Connection, count: int) -> list[int]:
    """Take ids for new rows, greater than all before; what is left of the last block is never used."""
    if count == 0:
        return []
    blocks = connection.execute(_BLOCKS, {"blocks": -(-count // ID_BLOCK)}).scalars()
    return [i for first in blocks for i in range(first, first + ID_BLOCK)][:count]


def _copy(connection: Connection, run_id: str, rows: Sequence[tuple[int, Row]]) -> None:
    if not rows:
        return
    with driver_of(connection).cursor() as cursor:
        with cursor.copy(_copy_into("trajectories", _COLUMNS)) as copy:
            copy.set_types([*_COLUMNS.values()])
            for trajectory_id, row in rows:
                copy.write_row(
                    (
                        trajectory_id,
                        run_id,
                        row.task_id,
                        row.prompt_id,
                        row.issue_id,
                        row.fingerprint,
                        row.policy_version,
                        row.reward,
                        row.tokens,
                        row.temperature,
                        row.top_p,
                        row.finish_reason,
                        _JSONB + row.scores.encode(),
                        _JSONB + json.dumps(row.spans).encode() if row.spans else None,
                    )
                )
        with cursor.copy(_copy_into("payloads", _PAYLOAD_COLUMNS)) as copy:
            copy.set_types([*_PAYLOAD_COLUMNS.values()])
            for trajectory_id, row in rows:
                copy.write_row((trajectory_id, run_id, row.token_ids, row.logprobs, row.text))


def _copy_into(table: str, columns: dict[str, str]) -> Any:
    return f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)"


def _refresh(connection: Connection, run_id: str, rows: Sequence[tuple[int, Row]]) -> None:
    """Bring rows up to date with the arrival that repeats them."""
    if not rows:
        return
    given = {
        "run_id": run_id,
        "ids": text_of(i for i, _ in rows),
        "policy_versions": text_of(row.policy_version for _, row in rows),
        "rewards": text_of(row.reward for _, row in rows),
        "temperatures": text_of(row.temperature for _, row in rows),
        "top_ps": text_of(row.top_p for _, row in rows),
        "finish_reasons": text_of(row.finish_reason for _, row in rows),
        "scores": f"[{','.join([row.scores for _, row in rows])}]",
        "spans": json.dumps([row.spans or None for _, row in rows]),
        "logprobs": [row.logprobs for _, row in rows],
        "texts": [row.text for _, row in rows],
    }
    connection.execute(_REFRESH, given)
