"""A hundred SIGKILLs of the buffer at random moments of ingest, sampling and reaping; then the books must balance.

    python -m tests.bench.buffer_kills [--kills N] [--seed S]

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from services.buffer.migrations import migrate
from tba_cli.local import kafka_broker, postgres
from tests.buffer.kills import Books, survive
from tests.logins import make_logins


def balances(books: Books) -> bool:
    """count(*) = count(distinct id) = produced - dead-lettered - expired - evicted, and no batch came in two shapes."""
    book = books.ledger
    ended = book.issued - book.in_flight - book.duplicates - book.dead_lettered - book.expired
    counts = {books.rows, books.distinct_ids, books.distinct_answers, ended - books.evicted}
    in_order = books.numbers == list(range(1, len(books.numbers) + 1))
    return len(counts) == 1 and in_order and not books.faults and not books.changed


def identity(books: Books) -> str:
    """The sentence that must be true, with its numbers. `produced` is what came back of what was ordered."""
    book = books.ledger
    produced = book.issued - book.in_flight
    lost = f"{book.dead_lettered} dead-lettered - {book.duplicates} duplicates - {book.expired} expired"
    return (
        f"count(*) = count(distinct id) = produced - dead-lettered - duplicates - expired - evicted: {books.rows} ="
        f" {books.distinct_ids} = {produced} - {lost} - {books.evicted} evicted"
        f" = {produced - book.dead_lettered - book.duplicates - book.expired - books.evicted}"
    )


def main() -> None:
    """Kill, count, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.buffer_kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began = time.monotonic()
    run_id = f"kills-{uuid.uuid4().hex[:8]}"
    with (
        TemporaryDirectory() as directory,
        kafka_broker.running() as servers,
        postgres.running(Path(directory) / "postgres") as url,
    ):
        make_logins(url)
        migrate(url)
        books = survive(asked.kills, url=url, servers=servers, run_id=run_id, seed=asked.seed)
    found = asdict(books) | {"numbers": len(books.numbers)}
    for name, value in found.items():
        print(f"{name:18} {value}")
    print(identity(books))
    figures = {
        "kills": books.kills,
        "rows": books.rows,
        "evicted": books.evicted,
        "batches": books.batches,
        "balances": balances(books),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(figures))
    if not balances(books):
        raise SystemExit("expected books that balance, got those above")


if __name__ == "__main__":
    main()
