"""Ten kills at random moments; `python -m tests.bench.buffer_kills` makes it a hundred."""

from __future__ import annotations

import pytest

from tests.buffer.kills import survive

pytestmark = pytest.mark.integration


def test_ten_kills_lose_nothing_store_nothing_twice_and_send_no_batch_in_two_shapes(
    migrated: str, broker: str, run_id: str
) -> None:
    books = survive(10, url=migrated, servers=broker, run_id=run_id, seed=1)
    produced = books.ledger.issued - books.ledger.in_flight - books.ledger.duplicates
    left = produced - books.ledger.dead_lettered - books.ledger.expired - books.evicted
    assert books.rows == books.distinct_ids == books.distinct_answers == left
    assert books.ledger.dead_lettered > 0
    assert books.ledger.duplicates > 0
    assert books.evicted > 0
    assert books.faults == []
    assert books.changed == []
    assert books.numbers == list(range(1, len(books.numbers) + 1))
