"""Steady ingest, eviction and sampling: does anything grow that should not, and does autovacuum keep up?

    python -m tests.bench.buffer_soak [--minutes N] [--rows-per-second R]

The store is full from the start, so that each row that comes pushes out one. The books (orders, draws, batches) do
grow, by design; they are shown apart. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from services.buffer import batches
from services.buffer.inbox import Inbox
from services.buffer.limiter import INGEST_ROWS
from services.buffer.payload_cache import PayloadCache
from services.buffer.reaper import Reaper
from services.buffer.sampling import Sampler
from tba_common.tasks import Task
from tests.bench._buffer_measures import opened, percentile, take_in
from tests.bench._buffer_server import Server, Stalled
from tests.bench._buffer_world import ROWS_PER_PROMPT, RUN, Store

ROWS: Final = 100_000  # stored
BATCHES_PER_SECOND: Final = 4
SECONDS_PER_VERSION: Final = 5.0
LOOK_SECONDS: Final = 5.0
CACHE_BYTES: Final = 64 << 20
FLAT: Final = 1.15  # the second half may hold so much more than the end of the first

_SIZES: Final = text("""
    SELECT sum(pg_total_relation_size(relid)) FILTER (WHERE relname ~ '^(trajectories|payloads)'),
        sum(pg_total_relation_size(relid)) FILTER (WHERE relname ~ '^(issues|draws|batches)'),
        sum(n_live_tup) FILTER (WHERE relname ~ '^trajectories'),
        sum(n_dead_tup) FILTER (WHERE relname ~ '^trajectories'),
        sum(autovacuum_count) FILTER (WHERE relname ~ '^(trajectories|payloads)')
    FROM pg_stat_user_tables
""")


@dataclass(frozen=True, slots=True)
class Look:
    """What is held at one moment; bytes and rows."""

    second: float
    resident: int
    stored: int
    books: int
    live: int
    dead: int
    vacuums: int


def look(store: Store, second: float) -> Look:
    """Ask the kernel and the server."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    with store.engine.connect() as connection:
        found = connection.execute(_SIZES).one()
    return Look(second, resident, *(int(value or 0) for value in found))


def answers(store: Store, version: int) -> Inbox:
    """What one transaction brings."""
    (inbox,) = store.answered(INGEST_ROWS, ROWS // ROWS_PER_PROMPT, version=version)
    return inbox


class Line:
    """The buffer's work, without the wire: one thread, as in the service."""

    def __init__(self, store: Store) -> None:
        self._store, self._reaper = store, Reaper(store.lease, RUN)
        self._sampler: Sampler = opened(store).sampler
        self._cache, self._numbers = PayloadCache(CACHE_BYTES), count(1)
        with store.engine.connect() as connection:
            self._task = Task.model_validate(connection.execute(text("SELECT spec FROM tasks")).scalar_one())

    def ingest(self, version: int) -> None:
        """Take in one transaction's worth."""
        self._sampler.index.advance(version)
        take_in(self._store, self._sampler.index, self._reaper, answers(self._store, version))

    def batch(self) -> None:
        """Draw, record, read; the learner trains it and keeps a checkpoint."""
        batch_id = next(self._numbers)
        drawn = self._sampler.batch(batch_id)
        with self._store.lease.transaction() as connection:
            batches.record(connection, RUN, batch_id, drawn)
            assert batches.load_groups(connection, RUN, batch_id, {1: self._task}, self._cache) is not None
            connection.execute(text("UPDATE batches SET trained_step = batch_id WHERE batch_id = :b"), {"b": batch_id})
            connection.execute(text("UPDATE runs SET checkpoint_batch_id = :b"), {"b": batch_id})


def soak(store: Store, seconds: float, rows_per_second: int, taken: list[float]) -> Iterator[Look]:
    """Work at a steady pace; yield what is held from time to time. `taken` gets the seconds of each transaction."""
    line, began = Line(store), time.monotonic()
    ingested = drawn = 0
    looked_at = -LOOK_SECONDS
    while (now := time.monotonic() - began) < seconds:
        if drawn <= now * BATCHES_PER_SECOND:
            line.batch()
            drawn += 1
        elif ingested <= now * rows_per_second:
            start = time.perf_counter()
            line.ingest(int(now / SECONDS_PER_VERSION) + 1)
            taken.append(time.perf_counter() - start)
            ingested += INGEST_ROWS
        else:
            time.sleep(0.002)
        if now - looked_at >= LOOK_SECONDS:
            looked_at = now
            yield look(store, now)
    print(f"{ingested / seconds:,.0f} rows/s ingested, {drawn / seconds:.1f} batches/s drawn")


def growth(values: list[int]) -> float:
    """The most of the last quarter over the most of the second: 1 where nothing grows."""
    quarter = max(1, len(values) // 4)
    return round(max(values[-quarter:]) / max(values[quarter : 2 * quarter] or values[:1]), 3)


def main() -> None:
    """Soak, print, judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.buffer_soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--rows-per-second", type=int, default=2_000)
    asked = parser.parse_args()
    stalled, taken = Stalled(), list[float]()
    with TemporaryDirectory() as directory:
        server = Server(Path(directory) / "postgres", autovacuum_naptime="10s")
        try:
            store = Store(server.database("soak"))
            store.fill(ROWS)
            looks = list(soak(store, asked.minutes * 60, asked.rows_per_second, taken))
            store.close()
        finally:
            server.stop()
    table = Table("second", "resident MB", "stored MB", "books MB", "rows", "dead rows", "autovacuums")
    for seen in looks[:: max(1, len(looks) // 20)]:
        sizes = (f"{value / 2**20:,.0f}" for value in (seen.resident, seen.stored, seen.books))
        table.add_row(f"{seen.second:.0f}", *sizes, f"{seen.live:,}", f"{seen.dead:,}", f"{seen.vacuums}")
    Console(width=120).print(table)
    figures = {
        "minutes": asked.minutes,
        "rows_per_second": asked.rows_per_second,
        "resident_growth": growth([seen.resident for seen in looks]),
        "stored_growth": growth([seen.stored for seen in looks]),
        "dead_rows_at_most": int(np.max([seen.dead for seen in looks])),
        "autovacuums": looks[-1].vacuums,
        "ingest_p99_ms": round(percentile(taken, 99), 1),
        "cpu_pressure": stalled.percent(),
    }
    print(json.dumps(figures))
    if max(figures["resident_growth"] or 0, figures["stored_growth"] or 0) > FLAT:
        raise SystemExit(f"expected growth of at most {FLAT}, got that above")


if __name__ == "__main__":
    main()
