"""How long an answer takes, how much work keeps the generators busy, what lies undrawn, and what rests. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Final

_REMEMBERED: Final = 512
_RECENT_SECONDS: Final = 30.0
_PATIENCE: Final = 4.0
_HOPS_SECONDS: Final = 1.0  # from service to service, and between their looks at what came
_MAX_LAPSES: Final = 6
_SHORTEST_REST_SECONDS: Final = 60.0
_LONGEST_REST_SECONDS: Final = 3_600.0


class Turnaround:
    """How long recent answers took. All times in seconds of one monotonic clock.

    Args:
        shortest_deadline_seconds: patience as long as nothing slower has been seen.
    """

    def __init__(self, shortest_deadline_seconds: float) -> None:
        self._shortest = shortest_deadline_seconds
        self._answers: deque[tuple[float, float, float]] = deque(maxlen=_REMEMBERED)  # (answered at, took, of it work)
        self._lapses = 0  # times that a deadline passed since anybody was last heard

    def answered(self, now: float, took_seconds: float, work_seconds: float | None = None) -> None:
        """Take note of an answer, and how much of its time was work; all of it where that is unknown."""
        work_seconds = took_seconds if work_seconds is None else min(work_seconds, took_seconds)
        self._answers.append((now, took_seconds, work_seconds))
        self.heard()

    def heard(self) -> None:
        """Somebody is there: patience is short again."""
        self._lapses = 0

    def lapsed(self) -> None:
        """A deadline passed and something was sent again.

        Patience doubles each time: who comes back after hours must not find hours of repeats.
        """
        self._lapses = min(self._lapses + 1, _MAX_LAPSES)

    def deadline_seconds(self) -> float:
        """Return the age at which an order counts as lost: far above what nine in ten took lately."""
        slow = sorted(took for _, took, _ in self._answers)[len(self._answers) * 9 // 10] if self._answers else 0.0
        return max(self._shortest, _PATIENCE * slow) * (1 << self._lapses)

    def window(self, now: float, least: int) -> int:
        """Return how many orders in flight keep those who answer busy, with a short queue.

        That is what comes back in twice the time that the work of one takes; never below `least`. A longer queue
        would not make anything faster: what stands in it grows stale. Waiting does not count as work, or a queue
        would ask for a longer one.
        """
        recent = [work for at, _, work in self._answers if now - at <= _RECENT_SECONDS]
        if not recent:
            return least
        is_full = len(recent) == _REMEMBERED
        rate = len(recent) / (max(now - self._answers[0][0], 1.0) if is_full else _RECENT_SECONDS)
        return max(least, round(rate * (2 * sum(recent) / len(recent) + _HOPS_SECONDS)))


class Resting:
    """Prompts that nobody could serve, such as one longer than the policy's context.

    They rest longer after each refusal, up to an hour: at full speed they would fill the disk with dead letters.
    """

    def __init__(self) -> None:
        self._resting: dict[int, tuple[float, float]] = {}  # prompt_id: (until, seconds)

    def refused(self, prompt_id: int, now: float) -> None:
        """Take note that an order of this prompt was dead-lettered."""
        _, before = self._resting.get(prompt_id, (now, _SHORTEST_REST_SECONDS / 2))
        seconds = min(2 * before, _LONGEST_REST_SECONDS)
        self._resting[prompt_id] = (now + seconds, seconds)

    def served(self, prompt_id: int) -> None:
        """Take note that an order of this prompt was answered: whatever was wrong is over."""
        self._resting.pop(prompt_id, None)

    def prompts(self, now: float) -> set[int]:
        """Return the prompts that are not to be ordered now."""
        return {prompt_id for prompt_id, (until, _) in self._resting.items() if now < until}


class Backlog:
    """Groups that came back and whose prompt has not been drawn for them yet, by prompt."""

    def __init__(self) -> None:
        self._versions: dict[int, deque[int]] = {}  # oldest first

    def arrived(self, prompt_id: int, version: int) -> None:
        """Take note of a group that became drawable."""
        self._versions.setdefault(prompt_id, deque()).append(version)

    def drawn(self, prompt_id: int) -> None:
        """Take note that a group of this prompt was drawn: it stands for the oldest that waited."""
        versions = self._versions.get(prompt_id)
        if versions:
            versions.popleft()
            if not versions:
                del self._versions[prompt_id]

    def forget(self, oldest_version: int) -> None:
        """Drop what has become too old to be drawn."""
        fresh = {x: deque(v for v in versions if v >= oldest_version) for x, versions in self._versions.items()}
        self._versions = {x: versions for x, versions in fresh.items() if versions}

    def count(self, ready: Collection[int]) -> int:
        """Count the groups of prompts that can be drawn."""
        return sum(len(versions) for x, versions in self._versions.items() if x in ready)
