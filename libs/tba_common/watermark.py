"""The law of out-of-order completion: which offset of each partition may be committed.

Records are delivered in order and finished in any order. An offset may be committed once every record delivered
before it is finished, so a crash at any moment repeats some work and never skips any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Partition:
    committed: int  # nothing below it is needed again
    next_offset: int  # one past the newest delivered
    unfinished: dict[int, None] = field(default_factory=dict)  # ascending, because deliveries are

    @property
    def watermark(self) -> int:
        return next(iter(self.unfinished), self.next_offset)


class Watermark:
    """Deliveries and completions of the partitions that are held. Pure: no clock, no Kafka."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}

    def partitions(self) -> set[int]:
        """Those held: something was delivered of them, and they were not lost."""
        return set(self._partitions)

    def position(self, partition: int) -> int:
        """One past the newest offset delivered; 0 when the partition is not held."""
        held = self._partitions.get(partition)
        return 0 if held is None else held.next_offset

    def deliver(self, partition: int, offset: int) -> None:
        """Take a record in hand. Offsets may have gaps (compaction), never go back.

        Raises:
            ValueError: the offset lies before one already delivered: `lose` the partition first.
        """
        held = self._partitions.setdefault(partition, _Partition(offset, offset))
        if offset < held.next_offset:
            raise ValueError(f"partition {partition}: expected offset {held.next_offset} or later, got {offset}")
        held.unfinished[offset] = None
        held.next_offset = offset + 1

    def done(self, partition: int, offset: int) -> None:
        """Finish a record. What is finished already, or was lost meanwhile, changes nothing."""
        held = self._partitions.get(partition)
        if held is not None:
            held.unfinished.pop(offset, None)

    def lose(self, partition: int) -> None:
        """Forget a partition that is no longer ours, or whose log starts anew."""
        self._partitions.pop(partition, None)

    def committable(self) -> dict[int, int]:
        """Next offset to read, of each partition whose watermark rose above what was committed."""
        return {
            partition: held.watermark for partition, held in self._partitions.items() if held.watermark > held.committed
        }

    def committed(self, offsets: Mapping[int, int]) -> None:
        """Remember what Kafka has accepted; partitions lost meanwhile are ignored."""
        for partition, offset in offsets.items():
            held = self._partitions.get(partition)
            if held is not None:
                held.committed = max(held.committed, offset)
