"""What the benchmark of the buffer measures of ours, each at one size."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

import numpy as np
from sqlalchemy import text

from services.buffer import batches
from services.buffer.arrivals import judge
from services.buffer.inbox import Inbox
from services.buffer.index import Index, rows_of
from services.buffer.ingest import ingest
from services.buffer.limiter import INGEST_ROWS
from services.buffer.payload_cache import PayloadCache
from services.buffer.reaper import Reaper
from services.buffer.restore import Restored, restore
from services.buffer.sampling import Sampler
from tba_common.record import Record
from tba_common.tasks import Task
from tests.bench._buffer_server import Server, wal_bytes
from tests.bench._buffer_world import COMPLETIONS, RUN, Store, settings

WARM_UP: Final = 4  # transactions before the clock starts
DRAWS: Final = 2_000
HELD_ROWS_PER_SECOND: Final = 4_000


class NoRejects:
    """Nothing here is at fault."""

    def handled(self) -> None:
        """Nobody counts."""

    def reject(self, record: Record, reason: str) -> None:
        """Say what should not be."""
        raise AssertionError(f"expected good records, got {reason} at offset {record.offset}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """One way of ingest. `whole` is `ingest()` from decoded messages; `written` leaves out judging them into rows."""

    whole_rows_per_second: float
    written_rows_per_second: float
    cpu_us: float  # a row, of both processes
    written_cpu_us: float  # the same without judging
    server_cpu_us: float
    wal_bytes: float  # a row
    p99_ms: float  # of a transaction


def opened(store: Store, **changes: Any) -> Restored:
    """The index over what is stored, with the task active."""
    with store.engine.connect() as connection:
        restored = restore(connection, settings(store.url, **changes))
    restored.sampler.index.activate(frozenset([1]))
    return restored


def percentile(seconds: Iterable[float], q: float) -> float:
    """In milliseconds."""
    return float(np.percentile(list(seconds), q) * 1e3)


def take_in(store: Store, index: Index, reaper: Reaper, inbox: Inbox) -> None:
    """Commit what came, bring the index up to date, and delete what that pushed out."""
    commit = ingest(store.lease, RUN, inbox, version=index.version, max_staleness=32, rejects=NoRejects())
    for group in commit.groups:
        reaper.spare(group.rows["trajectory_id"].tolist())
        reaper.evict(index.apply(group.prompt_id, group.task_id, group.rows))
    reaper.turn(time.monotonic(), is_busy=True)


def measure_ingest(server: Server, store: Store, inboxes: list[Inbox], *, capacity: int) -> Ingest:
    """Ingest as fast as possible; with a capacity that is reached, every row pushes out one, which is deleted."""
    index, reaper = opened(store, capacity_per_prompt=capacity).sampler.index, Reaper(store.lease, RUN)
    judging, judging_cpu = 0.0, 0.0

    def timed(*given: Any, **named: Any) -> Any:
        nonlocal judging, judging_cpu
        began, cpu_began = time.perf_counter(), time.process_time()
        plan = judge(*given, **named)
        judging += time.perf_counter() - began
        judging_cpu += time.process_time() - cpu_began
        return plan

    for inbox in inboxes[:WARM_UP]:
        take_in(store, index, reaper, inbox)
    gc.freeze()  # as the service does; and what waits here to be taken in would not be there at all
    measured = inboxes[WARM_UP:]
    seconds, rows = [], sum(inbox.rows for inbox in measured)
    with store.engine.connect() as connection:
        log_began = wal_bytes(connection)
    client, serving = time.process_time(), server.cpu_seconds()
    with patch("services.buffer.ingest.judge", timed):
        for inbox in measured:
            began = time.perf_counter()
            take_in(store, index, reaper, inbox)
            seconds.append(time.perf_counter() - began)
    client, serving = time.process_time() - client, server.cpu_seconds() - serving
    gc.unfreeze()
    with store.engine.connect() as connection:
        logged = wal_bytes(connection) - log_began
    return Ingest(
        whole_rows_per_second=rows / sum(seconds),
        written_rows_per_second=rows / (sum(seconds) - judging),
        cpu_us=(client + serving) / rows * 1e6,
        written_cpu_us=(client - judging_cpu + serving) / rows * 1e6,
        server_cpu_us=serving / rows * 1e6,
        wal_bytes=logged / rows,
        p99_ms=percentile(seconds, 99),
    )


def measure_vacuum(server: Server, store: Store) -> float:
    """CPU seconds of the server for a vacuum of both tables of trajectories."""
    began = server.cpu_seconds()
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (PARALLEL 0) trajectories, payloads"))
    return server.cpu_seconds() - began


def measure_draws(sampler: Sampler) -> list[float]:
    """Seconds of drawing a batch from the index: ids and probabilities, no payload."""
    seconds = []
    for batch_id in range(1, DRAWS + 1):
        began = time.perf_counter()
        sampler.draw(batch_id)
        seconds.append(time.perf_counter() - began)
    return seconds[100:]


def cpu_of(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds of one call: the median of some."""
    costs = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        costs.append(time.process_time() - began)
    return float(np.median(costs))


def get_batch(sampler: Sampler, cache: PayloadCache, batch_id: int) -> dict[str, Any]:
    """Draw a batch whose payloads are cached: tokens and log-probabilities end to end, not padded, and the rest."""
    drawn = sampler.draw(batch_id)
    rows = np.concatenate([group.rows for group in drawn])
    ids = rows["trajectory_id"].tolist()
    found = cache.get(ids)
    payloads = [found[i] for i in ids]
    return {
        "responses": np.frombuffer(b"".join([token_ids for token_ids, _ in payloads]), dtype="<i4"),
        "logprobs": np.frombuffer(b"".join([logprobs for _, logprobs in payloads]), dtype="<f4"),
        "lengths": np.array([len(token_ids) // 4 for token_ids, _ in payloads]),
        "rewards": rows["reward"],
        "draw_logprobs": np.concatenate([group.picks.draw_logprobs for group in drawn]),
    }


def measure_get_batch(sampler: Sampler) -> float:
    """CPU seconds of `get_batch`."""
    payload = (bytes(4 * 384), bytes(4 * 384))
    ids = [i for x in sampler.index.stocked for i in sampler.index.eligible(x)["trajectory_id"].tolist()]
    cache = PayloadCache(1 << 40)
    cache.put(dict.fromkeys(ids, payload))
    numbers = iter(range(10_000, 20_000))
    return cpu_of(lambda: get_batch(sampler, cache, next(numbers)), 200)


def measure_insert_and_draw(sampler: Sampler, rows: int) -> float:
    """CPU seconds until a batch reflects 500 new rows of 25 prompts: of the index, not of the tables."""
    prompts = sorted(sampler.index.ready)[: INGEST_ROWS // COMPLETIONS]
    ids = iter(range(1 << 40, 1 << 50))
    numbers = iter(range(20_000, 30_000))

    def insert_and_draw() -> None:
        for x in prompts:
            sampler.index.apply(x, 1, rows_of([(1, next(ids), 0.5) for _ in range(COMPLETIONS)]))
        sampler.draw(next(numbers))

    return cpu_of(insert_and_draw, 20)


def measure_batches(store: Store, task: Task, inboxes: list[Inbox]) -> tuple[list[float], list[float]]:
    """Draw, record and read batches as fast as they come, in one thread with an ingest of 4,000 rows a second.

    Returns:
        seconds of each batch; the same with what it had to wait for a transaction of ingest in front of it.
    """
    sampler, reaper, cache = opened(store).sampler, Reaper(store.lease, RUN), PayloadCache(0)
    batch_seconds, turn_seconds, batch_id = [], [], 0
    waiting, taken = list(reversed(inboxes)), 0
    started = time.perf_counter()
    while waiting:
        began = time.perf_counter()
        if taken <= HELD_ROWS_PER_SECOND * (began - started):
            inbox = waiting.pop()
            taken += inbox.rows
            take_in(store, sampler.index, reaper, inbox)
        else:
            reaper.turn(time.monotonic())
        drawing = time.perf_counter()
        batch_id += 1
        drawn = sampler.batch(batch_id)
        with store.lease.transaction() as connection:
            batches.record(connection, RUN, batch_id, drawn)
            groups = batches.load_groups(connection, RUN, batch_id, {1: task}, cache)
        assert groups is not None
        batch_seconds.append(time.perf_counter() - drawing)
        turn_seconds.append(time.perf_counter() - began)
    with store.engine.begin() as connection:
        connection.execute(text("DELETE FROM draws"))
        connection.execute(text("DELETE FROM batches"))
    return batch_seconds[10:], turn_seconds[10:]


def measure_rebuild(store: Store) -> float:
    """Seconds to read everything back, the median of three."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        opened(store)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))
