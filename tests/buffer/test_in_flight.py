"""What is in flight spreads over the partitions by what each still has to do."""

from __future__ import annotations

from collections import Counter

from services.buffer.in_flight import InFlight
from services.buffer.orders import Issue
from tba_common.messages import Purpose


def issue(number: int, *, purpose: Purpose = "train", completions: int = 16, partition: int = 0) -> Issue:
    return Issue(number, 1 + number % 2, 100 + number, purpose, None, completions, attempt=1, partition=partition)


def test_orders_spread_evenly_over_the_partitions() -> None:
    out = InFlight(4)
    assert Counter(out.reserve(16) for _ in range(12)) == {0: 3, 1: 3, 2: 3, 3: 3}


def test_a_partition_with_much_to_do_gets_less() -> None:
    out = InFlight(2)
    out.restore(issue(1, completions=40, partition=0), 0.0)
    assert [out.reserve(16) for _ in range(4)] == [1, 1, 1, 0]


def test_a_settled_order_makes_room_on_its_partition() -> None:
    out = InFlight(2)
    out.restore(issue(1, partition=0), 0.0)
    out.restore(issue(2, partition=1), 0.0)
    assert out.remove(2) is not None
    assert out.remove(2) is None
    assert out.reserve(16) == 1


def test_orders_are_overdue_by_their_last_attempt_and_their_purpose() -> None:
    out = InFlight(1)
    out.add(issue(1), 10.0)
    out.add(issue(2), 20.0)
    out.add(issue(3, purpose="eval"), 10.0)
    assert [w.issue.issue_id for w in out.overdue("train", 15.0)] == [1]
    assert [w.issue.issue_id for w in out.overdue("eval", 15.0)] == [3]


def test_orders_are_counted_by_task_and_named_by_prompt() -> None:
    out = InFlight(1)
    for number in (1, 2, 3):
        out.add(issue(number), 0.0)
    out.add(issue(4, purpose="eval"), 0.0)
    assert out.by_task("train") == {1: 1, 2: 2}
    assert out.prompts("train") == {101, 102, 103}
