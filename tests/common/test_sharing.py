"""Static shares of partitions, also while the number of processes changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tba_common.settings import WorkerSettings
from tba_common.sharing import StaticShare, fixed_share, moving_share

PARTITIONS = 24


def owners(count: int) -> dict[int, int]:
    return {p: index for index in range(count) for p in moving_share(PARTITIONS, index, count)}


@pytest.mark.parametrize("count", range(1, 31))
@pytest.mark.parametrize("share", [fixed_share, moving_share])
def test_every_partition_has_one_reader_and_the_shares_are_even(share: object, count: int) -> None:
    assert callable(share)
    shares = [share(PARTITIONS, index, count) for index in range(count)]
    assert sorted(p for own in shares for p in own) == list(range(PARTITIONS))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("count", range(1, 30))
def test_a_process_that_comes_takes_its_part_and_nothing_else_moves(count: int) -> None:
    before, after = owners(count), owners(count + 1)
    moved = {p for p in before if before[p] != after[p]}
    assert {after[p] for p in moved} <= {count}
    assert len(moved) == PARTITIONS // (count + 1)


def test_a_process_beyond_the_count_reads_nothing() -> None:
    assert moving_share(PARTITIONS, 2, 2) == []
    assert moving_share(PARTITIONS, 0, 0) == []


def test_a_share_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tba_common.sharing._LOOK_SECONDS", 0.0)
    file = tmp_path / "count"
    file.write_text("1")
    share = StaticShare(WorkerSettings(sharing="static", process_index=1, process_count_file=file))
    assert share.of(PARTITIONS) == []
    assert not share.changed()
    file.write_text("2")
    assert share.changed()
    assert share.of(PARTITIONS) == list(range(12, 24))
