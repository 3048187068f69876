"""Whole batches in strict order, out of groups that may come twice, late, or ahead of their turn. Pure.

Law: batch b is given out once, complete, and only after b - 1. What belongs to later batches is held, and the
offset to resume from never skips a group that is held.
"""

from __future__ import annotations

from dataclasses import dataclass

from tba_common.codec import BadMessage
from tba_common.messages import Group


@dataclass(frozen=True)
class Batch:
    """The groups of one optimiser step, in the order of their index."""

    batch_id: int
    groups: tuple[Group, ...]


class BatchAssembler:
    """What has been read of the batches after `last_batch_id`."""

    def __init__(self, last_batch_id: int) -> None:
        self._last = last_batch_id
        self._held: dict[int, dict[int, tuple[Group, int]]] = {}  # batch_id -> index -> group, offset

    @property
    def last_batch_id(self) -> int:
        """The newest batch that was given out."""
        return self._last

    @property
    def is_passed_over(self) -> bool:
        """Whether later batches are held and nothing of the next one."""
        return bool(self._held) and self._last + 1 not in self._held

    def add(self, group: Group, offset: int) -> None:
        """Take a group; a copy of one that was given out or is held changes nothing.

        Raises:
            BadMessage: the group cannot be a part of its batch.
        """
        _check(group)
        if group.batch_id <= self._last:
            return
        parts = self._held.setdefault(group.batch_id, {})
        if any(held.size != group.size for held, _ in parts.values()):
            parts.clear()  # the batch was drawn anew, and the rest of the old one will never come
        # The copy that a restart would read first; offsets start over when the broker lost the log.
        if group.index not in parts or offset < parts[group.index][1]:
            parts[group.index] = (group, offset)

    def take(self) -> Batch | None:
        """Give out the next batch if every group of it is here."""
        parts = self._held.get(self._last + 1)
        if not parts or len(parts) < next(iter(parts.values()))[0].size:
            return None
        self._last += 1
        del self._held[self._last]
        return Batch(self._last, tuple(parts[index][0] for index in sorted(parts)))

    def resume_offset(self, next_offset: int) -> int:
        """Where to read on after a crash, given where reading stands: the first group that is still held."""
        return min([next_offset, *(offset for parts in self._held.values() for _, offset in parts.values())])


def _check(group: Group) -> None:
    where = f"batch {group.batch_id}, group {group.index}"
    if not 0 <= group.index < group.size:
        raise BadMessage(f"{where}: expected an index from 0 to {group.size - 1}")
    if not len(group.prompt_token_ids):
        raise BadMessage(f"{where}: expected a prompt, got no token")
    if not group.draws or not all(len(draw.token_ids) for draw in group.draws):
        raise BadMessage(f"{where}: expected draws of one token or more, got {[len(d.token_ids) for d in group.draws]}")
