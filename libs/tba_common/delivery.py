"""The three fates of a message: handled, dead-lettered with its reason, or the process crashes uncommitted.

Many bad messages in a row are our fault, not theirs: then we crash too, before we dead-letter a whole topic.
"""

from __future__ import annotations

import logging
from typing import Final

from tba_common import metrics, topics
from tba_common.codec import BadMessage
from tba_common.kafka import Producer, Record
from tba_common.messages import DeadLetter, Prompt, Rollout, Trajectories

_BODY_BYTES: Final = 1 << 20  # a dead letter must fit a record, whatever it carries

log = logging.getLogger(__name__)


class TooManyBad(Exception):
    """So many messages in a row could not be handled that the fault must be ours."""


class DeadLetters:
    """Where a service sends what it cannot handle."""

    def __init__(self, producer: Producer, run_id: str, service: str, *, limit_in_a_row: int = 50) -> None:
        self._producer = producer
        self._run_id = run_id
        self._service = service
        self._limit = limit_in_a_row
        self._in_a_row = 0

    def handled(self) -> None:
        """Say that a message was handled: the row of bad ones is broken."""
        self._in_a_row = 0

    def reject(self, record: Record, reason: str) -> None:
        """Send a record to the dead letters; on return it is delivered there and may be marked done.

        Raises:
            TooManyBad: more than `limit_in_a_row` without one handled between them.
            DeliveryError: the broker did not take it.
        """
        self._in_a_row += 1
        if self._in_a_row > self._limit:
            raise TooManyBad(f"{self._in_a_row} messages in a row could not be handled, the last: {reason}")
        letter = DeadLetter(
            run_id=self._run_id,
            service=self._service,
            reason=reason,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            schema_header=record.headers.get("schema", b"").decode("utf-8", "replace"),
            issue_id=_issue_id(record),
            body=record.value[:_BODY_BYTES],
        )
        self._producer.send(topics.DEAD_LETTERS.name, letter)
        self._producer.flush()
        metrics.DEAD_LETTERS.labels(self._service).inc()
        log.warning(
            "dead letter",
            extra={"topic": record.topic, "offset": record.offset, "issue_id": letter.issue_id, "reason": reason},
        )


def _issue_id(record: Record) -> int | None:
    """The issue that a message belongs to, so that the ledger can settle it."""
    try:
        message = record.message()
    except BadMessage:
        return None
    if isinstance(message, Trajectories):
        message = message.rollout
    if isinstance(message, Rollout):
        message = message.prompt
    return message.issue_id if isinstance(message, Prompt) else None
