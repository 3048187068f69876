"""The interval of an accuracy: known values, and what must hold for every one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tba_cli.intervals import wilson


@pytest.mark.parametrize(
    ("share", "n", "expected"),
    [
        (0.0, 10, (0.0, 0.2775)),  # values of Newcombe (1998), Statistics in Medicine 17:857, table I, and of R's binom
        (1 / 29, 29, (0.0061, 0.1718)),
        (15 / 148, 148, (0.0624, 0.1605)),
        (81 / 263, 263, (0.2553, 0.3662)),
        (1.0, 10, (0.7225, 1.0)),
    ],
)
def test_the_interval_is_wilson_s(share: float, n: int, expected: tuple[float, float]) -> None:
    assert wilson(share, n) == pytest.approx(expected, abs=1e-4)


@given(st.floats(0, 1), st.integers(1, 10_000))
def test_it_holds_the_share_and_stays_between_nothing_and_all(share: float, n: int) -> None:
    low, high = wilson(share, n)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1


@given(st.floats(0.01, 0.99), st.integers(1, 5_000))
def test_more_trials_make_it_narrower(share: float, n: int) -> None:
    (low, high), (lower, higher) = wilson(share, 2 * n), wilson(share, n)
    assert high - low < higher - lower
