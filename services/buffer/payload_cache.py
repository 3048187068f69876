"""The tokens and log-probabilities of recent trajectories, so that a batch seldom has to ask PostgreSQL for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Final

Payload = tuple[bytes, bytes]  # token ids as int32, log-probabilities as float32

_OVERHEAD_BYTES: Final = 300  # of an entry, beside its two byte strings


class PayloadCache:
    """Payloads by trajectory id; the least recently used leave first when there are more than `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[int, Payload] = OrderedDict()
        self.bytes = 0

    def put(self, payloads: Mapping[int, Payload]) -> None:
        """Add payloads, or bring them up to date."""
        for trajectory_id, payload in payloads.items():
            self.forget([trajectory_id])
            self._entries[trajectory_id] = payload
            self.bytes += _size(payload)
        while self.bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= _size(oldest)

    def get(self, trajectory_ids: Collection[int]) -> dict[int, Payload]:
        """Return those that are there."""
        found = {i: self._entries[i] for i in trajectory_ids if i in self._entries}
        for trajectory_id in found:
            self._entries.move_to_end(trajectory_id)
        return found

    def forget(self, trajectory_ids: Collection[int]) -> None:
        """Drop payloads that are stored no more."""
        for trajectory_id in trajectory_ids:
            payload = self._entries.pop(trajectory_id, None)
            if payload is not None:
                self.bytes -= _size(payload)


def _size(payload: Payload) -> int:
    return len(payload[0]) + len(payload[1]) + _OVERHEAD_BYTES
