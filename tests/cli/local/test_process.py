"""The pause before the next life of a process."""

from __future__ import annotations

from tba_cli.local.process import backoff_seconds


def test_the_pause_doubles_from_half_a_second_to_ten() -> None:
    assert [backoff_seconds(failures) for failures in (1, 2, 3, 4, 5, 6, 7)] == [0.5, 1, 2, 4, 8, 10, 10]


def test_ten_thousand_failures_still_pause_ten_seconds() -> None:
    assert backoff_seconds(10_000) == 10
