"""The orders that wait for an answer: how many, how old, and on which partition. Pure: time comes in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from services.buffer.orders import Issue
from tba_common.messages import Purpose


@dataclass(frozen=True, slots=True)
class Waiting:
    """An order and when it was last sent, in seconds of a monotonic clock."""

    issue: Issue
    sent_at: float

    @property
    def is_lost(self) -> bool:
        """Whether what carried the order is gone, rather than its answer late."""
        return self.sent_at == float("-inf")


class InFlight:
    """Orders by id. A partition's load is the completions still to come from it."""

    def __init__(self, partitions: int) -> None:
        self._waiting: dict[int, Waiting] = {}
        self._load = Counter(dict.fromkeys(range(partitions), 0))

    def reserve(self, completions: int) -> int:
        """Choose the partition with the least to do, the lowest of equals, and count this much there."""
        partition = min(self._load, key=lambda p: (self._load[p], p))
        self._load[partition] += completions
        return partition

    def add(self, issue: Issue, now: float) -> None:
        """Take note that an order was sent to the partition reserved for it."""
        self._waiting[issue.issue_id] = Waiting(issue, now)

    def restore(self, issue: Issue, now: float) -> None:
        """Take over an order that another process sent."""
        self._load[issue.partition] += issue.completions
        self.add(issue, now)

    def remove(self, issue_id: int) -> Waiting | None:
        """Stop waiting for an order; None if nobody waits for it."""
        waiting = self._waiting.pop(issue_id, None)
        if waiting is not None:
            self._load[waiting.issue.partition] -= waiting.issue.completions
        return waiting

    def forget_when_sent(self) -> None:
        """Make every order overdue: what carried them is gone."""
        self._waiting = {issue_id: Waiting(w.issue, float("-inf")) for issue_id, w in self._waiting.items()}

    def overdue(self, purpose: Purpose, sent_before: float) -> list[Waiting]:
        """Return the orders that were last sent before a moment."""
        return [w for w in self._waiting.values() if w.issue.purpose == purpose and w.sent_at < sent_before]

    def prompts(self, purpose: Purpose) -> set[int]:
        """Return the prompts that have an order in flight."""
        return {w.issue.prompt_id for w in self._waiting.values() if w.issue.purpose == purpose}

    def by_task(self, purpose: Purpose) -> Counter[int]:
        """Count the orders of each task."""
        return Counter(w.issue.task_id for w in self._waiting.values() if w.issue.purpose == purpose)
