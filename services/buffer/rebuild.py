"""The index and the backlog, read back from Postgres at a start: a million rows in about a second.

PostgreSQL packs thousands of narrow rows into one value, so that neither side pays for a million of them; numpy
takes them apart. What was never drawn is found by subtracting the ids of recent draws.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from sqlalchemy import Connection

from services.buffer.arrays import driver_of
from services.buffer.index import ROW, Ids, Index, Rows
from services.buffer.pacing import Backlog

_PACKED: Final = np.dtype(
    [
        ("trajectory_id", ">i8"),
        ("prompt_id", ">i8"),
        ("task_id", ">i8"),
        ("issue_id", ">i8"),
        ("version", ">i4"),
        ("reward", ">f4"),
    ]
)
_ROWS: Final = """
    SELECT string_agg(int8send(trajectory_id) || int8send(prompt_id) || int8send(task_id) || int8send(issue_id)
        || int4send(policy_version) || float4send(reward), ''::bytea)
    FROM trajectories WHERE run_id = %(run_id)s GROUP BY trajectory_id / 5000
"""
# A trajectory of version v was drawn when the learner was at v or later; at v - 1 where a draw overtook the news.
_DRAWN: Final = """
    SELECT string_agg(int8send(trajectory_id), ''::bytea)
    FROM draws WHERE run_id = %(run_id)s AND batch_id >= (
        SELECT min(batch_id) FROM batches WHERE run_id = %(run_id)s AND policy_version >= %(oldest)s - 1)
    GROUP BY batch_id / 64
"""


def rebuild(connection: Connection, run_id: str, index: Index) -> tuple[list[int], Backlog]:
    """Fill an empty index.

    Returns:
        the ids of stored trajectories that do not fit into the index, and the groups that were never drawn.
    """
    packed = _fetch(connection, _ROWS, _PACKED, run_id=run_id)
    stored = packed[np.lexsort((packed["trajectory_id"], packed["version"], packed["prompt_id"]))]
    prompt_ids, starts, counts = np.unique(stored["prompt_id"], return_index=True, return_counts=True)
    from_newest = np.repeat(starts + counts, counts) - np.arange(len(stored))  # 1 is the newest of its prompt
    fits = from_newest <= index.capacity
    kept = stored[fits]
    starts = np.searchsorted(kept["prompt_id"], prompt_ids)
    index.load(_rows(kept), prompt_ids.astype(np.int64), kept["task_id"][starts].astype(np.int64), starts)
    drawn = _fetch(connection, _DRAWN, np.dtype([("trajectory_id", ">i8")]), run_id=run_id, oldest=index.oldest)
    return stored["trajectory_id"][~fits].tolist(), _undrawn(stored, drawn["trajectory_id"], index.oldest)


def _fetch(connection: Connection, query: str, dtype: np.dtype[Any], **parameters: object) -> Rows:
    with driver_of(connection).cursor(binary=True) as cursor:
        parts = [row[0] for row in cursor.execute(query, parameters)]
    return np.frombuffer(b"".join(parts), dtype=dtype)


def _rows(stored: Rows) -> Rows:
    rows = np.empty(len(stored), dtype=ROW)
    for name in ROW.names or ():
        rows[name] = stored[name]
    return rows


def _undrawn(stored: Rows, drawn: Ids, oldest_version: int) -> Backlog:
    """Return the groups none of whose trajectories was ever drawn, if they are not too old, the first order first."""
    fresh = stored[stored["version"] >= oldest_version]
    orders, group = np.unique(fresh["issue_id"], return_inverse=True)
    is_drawn = np.zeros(len(orders), dtype=bool)
    is_drawn[group[np.isin(fresh["trajectory_id"], drawn)]] = True
    newest = np.full(len(orders), -1, dtype=np.int64)
    np.maximum.at(newest, group, fresh["version"])
    prompt = np.zeros(len(orders), dtype=np.int64)
    prompt[group] = fresh["prompt_id"]
    backlog = Backlog()
    for prompt_id, version in zip(prompt[~is_drawn].tolist(), newest[~is_drawn].tolist(), strict=True):
        backlog.arrived(prompt_id, version)
    return backlog
