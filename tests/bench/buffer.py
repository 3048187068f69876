"""The buffer at ten thousand, a hundred thousand and a million rows, beside the original's algorithm and its peers.

    python -m tests.bench.buffer [--rows N ...]

Ours is measured on a real PostgreSQL with fsync on. The original is our own re-implementation (_original_buffer.py).
Peers run in environments that `make bench-peers` builds; one that is not there is said to be missing, and null.
The last line is one JSON object. Its figures are those of the largest size; "growth" is against the smallest.
`ingest_vs_original` compares CPU from items that are ready to items that are stored: rows here, objects there. Vacuums
are measured apart, so that no figure has one by chance; `tests/bench/buffer_soak.py` runs with autovacuum.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from tba_common.tasks import Task
from tests.bench import _original_buffer as original
from tests.bench._buffer_measures import (
    Ingest,
    cpu_of,
    measure_batches,
    measure_draws,
    measure_get_batch,
    measure_ingest,
    measure_insert_and_draw,
    measure_rebuild,
    measure_vacuum,
    opened,
    percentile,
)
from tests.bench._buffer_recovery import Recovery, measure_recovery
from tests.bench._buffer_server import SETTINGS, Server, Stalled
from tests.bench._buffer_world import COMPLETIONS, ROWS_PER_PROMPT, Store, arrivals

ROOT: Final = Path(__file__).parents[2]
PEERS: Final = {"torchrl": ".venv-peers", "cpprb": ".venv-peers", "reverb": ".venv-reverb"}
INGESTED: Final = 40_000  # rows of each measurement
NEW_OF_HUNDRED: Final = 24  # responses of a changed prompt that a sync brings, of those it sends


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """What was measured of ours at one size; seconds unless said."""

    rows: int
    plain: Ingest
    evicting: Ingest
    vacuum: float  # CPU of the server, after as many rows as were ingested were deleted
    draws: list[float]
    batches: list[float]
    turns: list[float]
    rebuild: float
    get_batch: float
    insert_and_draw: float
    recovery: Recovery | None
    stalled: float | None  # percent of the time


@dataclass(frozen=True, slots=True, kw_only=True)
class Theirs:
    """CPU seconds of the original, and the bytes that a sync sends for each new item."""

    get_batch: float
    insert: float  # an item, into a full prompt
    sync: float  # an item
    sync_bytes: float


def measure_ours(server: Server, rows: int, *, recovers: bool) -> Ours:
    """Fill a database, then everything."""
    stalled = Stalled()
    began = time.monotonic()
    store = Store(server.database(f"bench_{rows}"))
    store.fill(rows)
    print(f"{rows:,} rows stored in {time.monotonic() - began:.0f} s", flush=True)
    prompts = rows // ROWS_PER_PROMPT
    with store.engine.connect() as connection:
        task = Task.model_validate(connection.execute(text("SELECT spec FROM tasks")).scalar_one())
    sampler = opened(store).sampler
    draws, get_batch = measure_draws(sampler), measure_get_batch(sampler)
    insert_and_draw = measure_insert_and_draw(sampler, rows)
    rebuild = measure_rebuild(store)
    plain = measure_ingest(server, store, store.answered(INGESTED, prompts, version=1), capacity=100_000)
    evicting = measure_ingest(server, store, store.answered(INGESTED, prompts, version=2), capacity=ROWS_PER_PROMPT)
    vacuum = measure_vacuum(server, store)
    batches, turns = measure_batches(store, task, store.answered(INGESTED, prompts, version=3))
    recovery = measure_recovery(server, store) if recovers else None
    store.close()
    return Ours(
        rows=rows,
        plain=plain,
        evicting=evicting,
        vacuum=vacuum,
        draws=draws,
        batches=batches,
        turns=turns,
        rebuild=rebuild,
        get_batch=get_batch,
        insert_and_draw=insert_and_draw,
        recovery=recovery,
        stalled=stalled.percent(),
    )


def measure_original(rows: int) -> Theirs:
    """The original's algorithm with a hundred responses to each prompt."""
    rng = np.random.default_rng(0)
    whole = original.filled(rows // original.CAPACITY, rng)
    get_batch = cpu_of(lambda: whole.get_batch(16, 20, online_probability=0.5), 50)
    one = original.PromptBuffer(1.0)
    one.add_new_items(original.items(rng, original.CAPACITY, 0))
    news = iter([original.items(rng, COMPLETIONS, n) for n in range(1, 31)])
    insert = cpu_of(lambda: one.add_new_items(next(news)), 30) / COMPLETIONS
    changed = {x: original.PromptBuffer(1.0, original.items(rng, original.CAPACITY, 0)) for x in range(20)}
    new_items = len(changed) * NEW_OF_HUNDRED
    size, _ = original.sync(changed)
    sync = cpu_of(lambda: original.sync(changed), 3) / new_items
    return Theirs(get_batch=get_batch, insert=insert, sync=sync, sync_bytes=size / new_items)


def measure_peer(name: str, rows: int) -> dict[str, float] | None:
    """What a peer says of itself, or None where its environment is not there or it fails."""
    python = ROOT / PEERS[name] / "bin/python"
    if not python.exists():
        return None
    command = [str(python), str(Path(__file__).with_name("_buffer_peers.py")), name, "--rows", str(rows)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode != 0:
        print(f"{name} ended with {said.returncode}: {said.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    found: dict[str, float] = json.loads(said.stdout.strip().splitlines()[-1])
    return found


def wire_bytes() -> float:
    """Bytes of one new item on our wire, which takes the place of the original's sync."""
    (answer,) = arrivals([1], 1, version=1)
    return len(answer.value) / COMPLETIONS


def figures_of(ours: Sequence[Ours], theirs: Theirs, peers: dict[str, dict[str, float] | None]) -> dict[str, Any]:
    """The JSON of the issue: the largest size, in the words of the targets."""
    small, large = ours[0], ours[-1]
    reverb, torchrl = peers["reverb"], peers["torchrl"]
    growth = percentile(large.draws, 50) / percentile(small.draws, 50)
    return {
        "ingest_rows_per_second": round(large.plain.whole_rows_per_second),
        "ingest_evict_rows_per_second": round(large.evicting.whole_rows_per_second),
        "index_draw_p99_ms": round(percentile(large.draws, 99), 3),
        "index_draw_growth_10k_to_1m": round(growth, 2) if len(ours) > 1 else None,
        "batch_p99_ms": round(percentile(large.turns, 99), 1),
        "rebuild_seconds": round(large.rebuild, 2),
        "recovery_seconds": round(large.recovery.to_batch, 1) if large.recovery else None,
        "get_batch_vs_original": round(theirs.get_batch / large.get_batch, 1),
        "ingest_vs_original": round(theirs.insert * 1e6 / large.evicting.written_cpu_us, 1),
        "bytes_vs_original": round(theirs.sync_bytes / wire_bytes(), 1),
        "insert_cpu_vs_reverb": round(large.plain.cpu_us / reverb["insert_cpu_us"], 2) if reverb else None,
        "grouped_draw_vs_torchrl": round(torchrl["insert_and_draw_cpu_ms"] / (large.insert_and_draw * 1e3), 1)
        if torchrl
        else None,
        "cpu_pressure": large.stalled,
    }


def lines(size: Ours) -> dict[str, str]:
    """One column of the table."""
    plain, evicting, recovery = size.plain, size.evicting, size.recovery
    return {
        "ingest, from decoded messages; rows/s": f"{plain.whole_rows_per_second:,.0f}",
        "  the same from rows: the write path alone": f"{plain.written_rows_per_second:,.0f}",
        "  CPU us a row, both processes; from rows; server": _cpu(plain),
        "  transaction of 500 p99 ms; WAL bytes a row": f"{plain.p99_ms:.0f}; {plain.wal_bytes:,.0f}",
        "ingest and deletion of as many, from messages; rows/s": f"{evicting.whole_rows_per_second:,.0f}",
        "  the same from rows": f"{evicting.written_rows_per_second:,.0f}",
        "  CPU us a row, likewise": _cpu(evicting),
        "  WAL bytes a row; CPU us of a later vacuum": f"{evicting.wal_bytes:,.0f}; {size.vacuum / INGESTED * 1e6:.0f}",
        "index draw of 16 x 20, p50 / p99 ms": f"{percentile(size.draws, 50):.2f} / {percentile(size.draws, 99):.2f}",
        "batch drawn, recorded, read; p50 / p99 ms": f"{percentile(size.batches, 50):.1f} /"
        f" {percentile(size.batches, 99):.1f}",
        "  behind an ingest of 4,000 rows/s; p50 / p99 ms": f"{percentile(size.turns, 50):.1f} /"
        f" {percentile(size.turns, 99):.1f}",
        "get_batch with cached payloads, CPU ms": f"{size.get_batch * 1e3:.2f}",
        "500 rows into the index and a draw, CPU ms": f"{size.insert_and_draw * 1e3:.2f}",
        "index rebuilt, seconds": f"{size.rebuild:.2f}",
        "kill -9 of both to first batch, s (database up)": f"{recovery.to_batch:.1f} ({recovery.to_database:.1f}),"
        f" {recovery.wal_bytes >> 20} MB of WAL"
        if recovery
        else "-",
        "somebody waited for a core, % of the time": "unknown" if size.stalled is None else f"{size.stalled:.0f}",
    }


def _cpu(ingest: Ingest) -> str:
    return f"{ingest.cpu_us:.0f}; {ingest.written_cpu_us:.0f}; {ingest.server_cpu_us:.0f}"


def show(ours: Sequence[Ours], theirs: Theirs, peers: dict[str, dict[str, float] | None]) -> None:
    """Print what was measured, of everybody."""
    table = Table("ours", *(f"{size.rows:,}" for size in ours), title=f"The buffer; PostgreSQL with {SETTINGS}, fsync")
    columns = [lines(size) for size in ours]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    Console(width=140).print(table)
    table = Table("peer, in memory unless said", "figure", "value", title=f"Peers at {ours[-1].rows:,} rows")
    table.add_row("original", "get_batch of 320, CPU ms", f"{theirs.get_batch * 1e3:.2f}")
    table.add_row("original", "insert into 100, CPU us an item", f"{theirs.insert * 1e6:.0f}")
    table.add_row("original", "sync, CPU us a new item", f"{theirs.sync * 1e6:.0f}")
    table.add_row("original", "sync, bytes a new item", f"{theirs.sync_bytes:,.0f} (our wire: {wire_bytes():,.0f})")
    for name, found in peers.items():
        for figure, value in (found or {"": 0.0}).items():
            table.add_row(name, figure or "not installed: make bench-peers", f"{value:,.2f}" if figure else "-")
    Console(width=140).print(table)
    print(
        "Raw insertion in memory is cheaper than ours, which is durable, deduplicated and shared: see the peers' CPU."
    )


def main() -> None:
    """Measure, print, and the figures as one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.buffer", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    sizes = sorted(parser.parse_args().rows)
    ours = []
    with TemporaryDirectory() as directory:
        server = Server(Path(directory) / "postgres", autovacuum="off")
        try:
            for rows in sizes:
                ours.append(measure_ours(server, rows, recovers=rows == sizes[-1]))
        finally:
            server.stop()
    theirs = measure_original(sizes[-1])
    peers = {name: measure_peer(name, sizes[-1]) for name in PEERS}
    show(ours, theirs, peers)
    print(json.dumps(figures_of(ours, theirs, peers)))


if __name__ == "__main__":
    main()
