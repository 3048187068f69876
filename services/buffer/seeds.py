"""Seeds as rows: answers that people gave for prompts of a task become orders whose completions are given."""

from __future__ import annotations

from collections.abc import Collection
from itertools import accumulate, groupby
from typing import Final

from sqlalchemy import Connection, func, select, update

from services.buffer.arrays import any_of
from services.buffer.request_tables import seeds

_ANSWERS: Final = 64  # in an order
_BYTES: Final = 256 << 10  # of text in one, but for a single answer: tokenised it takes nine times that
_PROMPTS: Final = 64  # at once


def next_seeds(connection: Connection, task_id: int, busy: Collection[int]) -> dict[int, list[tuple[int, str]]]:
    """Return (seed id, answer) of seeds that have no order, by prompt, oldest first; none of `busy` prompts."""
    place = func.row_number().over(partition_by=seeds.c.prompt_id, order_by=seeds.c.seed_id)
    rank = func.dense_rank().over(order_by=seeds.c.prompt_id)
    waiting = (
        select(seeds.c.seed_id, seeds.c.prompt_id, seeds.c.text, place.label("place"), rank.label("rank"))
        .where(seeds.c.task_id == task_id, seeds.c.issue_id.is_(None), ~(seeds.c.prompt_id == any_of(busy)))
        .subquery()
    )
    some = select(waiting).where(waiting.c.place <= _ANSWERS, waiting.c.rank <= _PROMPTS)
    rows = connection.execute(some.order_by(waiting.c.prompt_id, waiting.c.seed_id)).all()
    answers = groupby(rows, key=lambda row: row.prompt_id)
    return {x: _what_fits([(row.seed_id, row.text) for row in group]) for x, group in answers}


def _what_fits(answers: list[tuple[int, str]]) -> list[tuple[int, str]]:
    ends = accumulate(len(answer.encode()) for _, answer in answers)
    return [answer for place, (answer, end) in enumerate(zip(answers, ends, strict=True)) if not place or end <= _BYTES]


def tasks_with_seeds(connection: Connection, task_ids: Collection[int]) -> list[int]:
    """Return the tasks among these that have seeds without an order."""
    query = select(seeds.c.task_id).where(seeds.c.task_id == any_of(task_ids), seeds.c.issue_id.is_(None))
    return list(connection.scalars(query.distinct().order_by(seeds.c.task_id)))


def mark(connection: Connection, issue_id: int, seed_ids: Collection[int]) -> None:
    """Take note that these seeds have their order."""
    connection.execute(update(seeds).where(seeds.c.seed_id == any_of(seed_ids)).values(issue_id=issue_id))


def reopen(connection: Connection, issue_ids: Collection[int]) -> None:
    """Let the seeds of these orders be ordered anew: nobody answered in time."""
    connection.execute(update(seeds).where(seeds.c.issue_id == any_of(issue_ids)).values(issue_id=None))


def given(connection: Connection, issue_ids: Collection[int]) -> dict[int, list[str]]:
    """Return the answers of those orders whose completions are given, in their order."""
    query = select(seeds.c.issue_id, seeds.c.text).where(seeds.c.issue_id == any_of(issue_ids))
    rows = connection.execute(query.order_by(seeds.c.issue_id, seeds.c.seed_id)).all()
    return {i: [row.text for row in group] for i, group in groupby(rows, key=lambda row: row.issue_id)}
