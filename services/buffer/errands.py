"""What the buffer does on request beside training: gradings, re-scorings, replays of dead letters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from services.buffer.feed import Feed
from services.buffer.judging import PURPOSES, Judging
from services.buffer.lease import Lease
from services.buffer.orders import Issue, KnownTask
from services.buffer.replays import Letter, Replays
from tba_common import topics
from tba_common.messages import Message, Rollout


class Sink(Protocol):
    """Where messages go: tba_common.kafka.Producer."""

    def send(self, topic: str, message: Message, *, key: str | None = None, partition: int | None = None) -> None: ...

    def send_bytes(self, topic: str, schema: str, body: bytes, *, partition: int | None = None) -> None: ...

    def flush(self) -> None: ...


class Errands:
    """Single-threaded. `now` is everywhere the same monotonic clock, in seconds."""

    def __init__(self, lease: Lease, run_id: str, sink: Sink, feed: Feed, *, reissue_seconds: float) -> None:
        self._sink, self._feed = sink, feed
        self._judging = Judging(lease, run_id, self._send, reissue_seconds=reissue_seconds)
        self._replays = Replays(lease, run_id, self._replay)

    def load(self, now: float) -> None:
        """Take over what is in flight."""
        self._judging.load(now)

    def settled(self, issue_ids: Iterable[int], now: float) -> None:
        """Take note of orders that were settled."""
        self._judging.settled(issue_ids, now)

    def lost(self) -> None:
        """Count everything in flight as lost."""
        self._judging.lost()

    def turn(self, now: float, tasks: Mapping[int, KnownTask]) -> None:
        """Do what was asked for."""
        self._judging.turn(now, tasks)
        for issue in self._replays.turn(now):
            self._reopened(issue, now)

    def _reopened(self, issue: Issue, now: float) -> None:
        if issue.purpose in PURPOSES:
            self._judging.reopened([issue], now)
        else:
            self._feed.reopened(issue, now)

    def _send(self, rollout: Rollout) -> None:
        self._sink.send(topics.rollouts(rollout.remaining[0]), rollout, key=str(rollout.prompt.issue_id))

    def _replay(self, letters: Iterable[Letter]) -> None:
        for letter in letters:
            self._sink.send_bytes(letter.topic, letter.schema_header, letter.body, partition=letter.partition)
        self._sink.flush()
