"""The buffer's two readers: what comes to be stored, which may have to wait, and what is said, which may not.

Backpressure is not polling the first one. Both are assigned their partitions for good, so that nobody takes them
away from a reader that is silent; paused ones could wedge in the client, a silent one cannot.
"""

from __future__ import annotations

import logging
from typing import Protocol

from tba_common.record import Record

log = logging.getLogger(__name__)


class Poll(Protocol):
    """tba_common.kafka.Reader."""

    @property
    def logs_lost(self) -> int: ...

    def poll(self, timeout_seconds: float, limit: int | None = None) -> list[Record]: ...

    def close(self) -> None: ...


class Intake:
    """Reads both. Single-threaded."""

    def __init__(self, arrivals: Poll, reports: Poll) -> None:
        self._arrivals, self._reports = arrivals, reports
        self._holds = False

    @property
    def logs_lost(self) -> int:
        """Times that logs were found to start anew."""
        return self._arrivals.logs_lost + self._reports.logs_lost

    def hold(self, holds: bool) -> None:
        """Leave what is to be stored on the wire, or take it again."""
        if holds != self._holds:
            log.info("ingest waits for the learner" if holds else "ingest goes on")
        self._holds = holds

    def poll(self, timeout_seconds: float, limit: int | None = None) -> list[Record]:
        """Return what was said, else what came, waiting for the first record of the kind that is awaited."""
        if self._holds:
            return self._reports.poll(timeout_seconds, limit)
        return self._reports.poll(0.0, limit) or self._arrivals.poll(timeout_seconds, limit)

    def close(self) -> None:
        """Disconnect."""
        self._arrivals.close()
        self._reports.close()
