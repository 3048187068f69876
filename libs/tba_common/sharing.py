"""Who reads which partition where no group coordinator says so: by index and count, and while the count changes.

A fixed count: partition p belongs to process p mod count. A count that changes is read from a file, and then a process
that comes takes its part from those who have most, and one that goes gives back just that: nothing else moves.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from tba_common.settings import WorkerSettings

_LOOK_SECONDS: Final = 0.25


def fixed_share(partitions: int, index: int, count: int) -> list[int]:
    """Return the partitions of one of `count` processes that are always as many."""
    return list(range(index, partitions, count))


def moving_share(partitions: int, index: int, count: int) -> list[int]:
    """Return the partitions of one of `count` processes; the next count moves as few of them as can be."""
    shares = [list(range(partitions))]
    while len(shares) < count:
        newcomer: list[int] = []
        for _ in range(partitions // (len(shares) + 1)):
            newcomer.append(max(shares, key=len).pop())
        shares.append(newcomer)
    return sorted(shares[index]) if index < count else []


class StaticShare:
    """The share of this process. The file, if there is one, holds how many processes read now."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._index, self._count = settings.process_index, settings.process_count
        self._file: Path | None = settings.process_count_file
        self._looked_at = float("-inf")
        self.changed()

    def changed(self) -> bool:
        """Look whether the count is another one; asked often, it looks four times a second."""
        if self._file is None or time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return False
        self._looked_at = time.monotonic()
        before, self._count = self._count, int(self._file.read_text())
        return self._count != before

    def of(self, partitions: int) -> list[int]:
        """Return the partitions of this process, out of so many."""
        share = fixed_share if self._file is None else moving_share
        return share(partitions, self._index, self._count)
