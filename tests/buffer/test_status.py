"""Figures of the status line."""

from __future__ import annotations

from collections import Counter

from services.buffer.status import PerMinute, merged


def test_a_rate_forgets_what_is_older_than_a_minute() -> None:
    rate = PerMinute()
    rate.add(0.0, 5)
    rate.add(30.0, 7)
    rate.add(31.0, 0)
    assert rate.total(59.0) == 12
    assert rate.total(61.0) == 7
    assert rate.total(200.0) == 0


def test_counters_merge_into_json_with_keys_in_order() -> None:
    assert list(merged([Counter({10: 1, 2: 1}), Counter({2: 3})]).items()) == [("2", 4), ("10", 1)]
