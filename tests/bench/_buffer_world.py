"""A run as large as asked for, for the benchmarks of the buffer: its orders, its rows, and what comes next."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import numpy as np
from sqlalchemy import Engine, create_engine, text

from services.buffer.inbox import Inbox
from services.buffer.lease import Lease
from services.buffer.limiter import INGEST_ROWS
from services.buffer.migrations import migrate
from services.buffer.restore import ensure_run
from services.buffer.settings import BufferSettings
from tba_common import topics
from tba_common.codec import encode
from tba_common.messages import Completion, Prompt, Rollout, Score, Trajectories
from tba_common.record import Record
from tba_common.tasks import Sampling, ScorerTerm, Task

RUN: Final = "bench"
COMPLETIONS: Final = 20
ROWS_PER_PROMPT: Final = 100
VOCABULARY: Final = 50_000

_FILL: Final = """
    INSERT INTO trajectories SELECT n + 1, :run_id, 1, n / :per_prompt + 1, n / 20 + 1,
        gen_random_uuid(), 0, random(), 384, 1, 1, 'eos', '[]'
    FROM generate_series(CAST(:first AS bigint), :last - 1) AS n;
"""
_FILL_PAYLOADS: Final = """
    INSERT INTO payloads SELECT n + 1, :run_id, substr(noise.tokens, CAST(n % 500 * 4 + 1 AS int), 1536),
        substr(noise.tokens, CAST(n % 300 * 4 + 1 AS int), 1536), 'x'
    FROM generate_series(CAST(:first AS bigint), :last - 1) AS n,
        (SELECT string_agg(int4send((random() * 50000)::int), '') AS tokens FROM generate_series(1, 1000)) AS noise;
"""


def settings(url: str, **changes: Any) -> BufferSettings:
    """The settings of the run: batches of 16 prompts by 20 trajectories."""
    numbers = {"run_id": RUN, "database_url": url, "groups_per_batch": 16, "trajectories_per_group": 20}
    return BufferSettings.model_validate(numbers | {"capacity_per_prompt": ROWS_PER_PROMPT, "min_size": 0} | changes)


class Store:
    """A migrated database with one run and a lease on it."""

    def __init__(self, url: str) -> None:
        migrate(url)
        self.url = url
        self.engine: Engine = create_engine(url)
        self.lease = Lease(self.engine, f"buffer/{RUN}", "bench")
        with self.engine.begin() as connection:
            ensure_run(connection, RUN)
        assert self.lease.acquire()

    def close(self) -> None:
        """Disconnect."""
        self.engine.dispose()

    def fill(self, rows: int) -> None:
        """Store rows of version 0, 100 a prompt, made in the server."""
        task = Task(name="bench", reward=(ScorerTerm(scorer="verifier"),), sampling=Sampling(completions=COMPLETIONS))
        prompts = rows // ROWS_PER_PROMPT
        with self.engine.begin() as connection:
            connection.execute(
                text("INSERT INTO tasks (run_id, name, spec) VALUES (:run_id, 'bench', CAST(:spec AS jsonb))"),
                {"run_id": RUN, "spec": task.model_dump_json()},
            )
            connection.execute(
                text(
                    "INSERT INTO prompts (task_id, split, text, token_ids)"
                    " SELECT 1, 'train', n::text, decode('01000000', 'hex') FROM generate_series(1, :prompts) AS n"
                ),
                {"prompts": prompts},
            )
            connection.execute(text("UPDATE runs SET policy_version = 0"))
        for first in range(0, rows, 50_000):
            span = {"run_id": RUN, "first": first, "last": min(rows, first + 50_000)}
            with self.engine.begin() as connection:
                connection.execute(text(_FILL), span | {"per_prompt": ROWS_PER_PROMPT})
                connection.execute(text(_FILL_PAYLOADS), span)
        with self.engine.begin() as connection:
            connection.execute(text("SELECT setval('trajectory_ids', :last)"), {"last": rows + 1})
            connection.execute(
                text("UPDATE sampler_state SET inserts = :rows, samples = 0 WHERE run_id = :run_id"),
                {"rows": rows, "run_id": RUN},
            )
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE trajectories, payloads"))
            connection.execute(text("CHECKPOINT"))

    def order(self, count: int, prompts: int) -> list[int]:
        """Put orders in flight, round the prompts; return their ids."""
        query = (
            "INSERT INTO issues (run_id, task_id, prompt_id, purpose, completions, partition)"
            " SELECT :run_id, 1, n % :prompts + 1, 'train', :completions, 0 FROM generate_series(1, :count) AS n"
            " RETURNING issue_id"
        )
        values = {"run_id": RUN, "prompts": prompts, "completions": COMPLETIONS, "count": count}
        with self.engine.begin() as connection:
            return list(connection.execute(text(query), values).scalars())

    def answered(self, rows: int, prompts: int, *, version: int) -> list[Inbox]:
        """Order `rows` trajectories; return the answers, decoded, as many together as make a transaction."""
        records = list(arrivals(self.order(rows // COMPLETIONS, prompts), prompts, version=version))
        return list(inboxes(records, INGEST_ROWS))


def arrivals(issue_ids: list[int], prompts: int, *, version: int, repeated: float = 0.02) -> Iterator[Record]:
    """Answers to orders as they lie on the wire: 256 to 512 tokens each, a few of them said before."""
    rng, said = np.random.default_rng(issue_ids[0]), _said()
    for offset, issue_id in enumerate(issue_ids):
        tokens = []
        for index in range(COMPLETIONS):
            again = index and rng.random() < repeated
            start, length = (7, 300) if again else (int(rng.integers(0, len(said) - 512)), int(rng.integers(256, 512)))
            tokens.append(said[start : start + length].astype(np.int32))
        yield record_of(issue_id, (offset + 1) % prompts + 1, tokens, version, offset)


@cache
def _said() -> np.ndarray[Any, Any]:
    """Tokens as frequent as words are; an answer is a piece of them."""
    return np.random.default_rng(0).zipf(1.3, 2_000_000) % VOCABULARY


def record_of(issue_id: int, prompt_id: int, tokens: list[np.ndarray[Any, Any]], version: int, offset: int) -> Record:
    """One answer on the wire."""
    completions = tuple(
        Completion(
            token_ids=ids,
            logprobs=np.full(len(ids), -1.0, np.float32),
            text="x",
            finish_reason="eos",
            policy_version=version,
        )
        for ids in tokens
    )
    rewards = np.linspace(0, 1, len(tokens), dtype=np.float32)
    prompt = Prompt(
        run_id=RUN,
        issue_id=issue_id,
        task_id=1,
        prompt_id=prompt_id,
        text="?",
        sampling=Sampling(completions=len(tokens)),
        reward=(ScorerTerm(scorer="verifier"),),
    )
    rollout = Rollout(
        run_id=RUN,
        prompt=prompt,
        prompt_token_ids=np.array([1], np.int32),
        completions=completions,
        temperature=1.0,
        top_p=1.0,
        generator="bench",
        scores=(Score(scorer="verifier", version="1", values=rewards, seconds=0.0),),
        remaining=(),
    )
    schema, body = encode(Trajectories(run_id=RUN, rollout=rollout, rewards=rewards))
    return Record(topics.TRAJECTORIES.name, 0, offset, None, body, {"schema": schema.encode(), "run": RUN.encode()})


def inboxes(records: list[Record], rows: int) -> Iterator[Inbox]:
    """Decoded records, in heaps of about so many rows."""
    inbox = Inbox()
    for record in records:
        inbox.add([record])
        if inbox.rows >= rows:
            yield inbox
            inbox = Inbox()
    if inbox.rows:
        yield inbox
