"""The three fates of a message: handled, dead-lettered with its reason, or the process crashes uncommitted.

Many bad messages in a row are our fault, not theirs: then we crash too, before we dead-letter a whole topic. Unless
they are all of one task while others are served here: then that task is at fault, and must not stop the others.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tba_common import metrics, topics
from tba_common.codec import BadMessage
from tba_common.kafka import BrokerError, DeliveryError, Producer, Record
from tba_common.messages import DeadLetter, Prompt, Rollout, Trajectories

#: A dead letter must fit a record, whatever it carries: what is longer is cut.
BODY_BYTES: Final = 1 << 20
_TEXT_CHARACTERS: Final = 4_096  # a reason may quote what it is about

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
        self._in_a_row: Counter[int | None] = Counter()  # by task; None: unreadable, or of no task
        self._served: set[int] = set()  # tasks with a message that was handled

    def handled(self, task_id: int | None = None) -> None:
        """Say that a message was handled, and whose: the row of bad ones is broken."""
        self._in_a_row.clear()
        if task_id is not None:
            self._served.add(task_id)

    def reject(self, record: Record, reason: str) -> None:
        """Send a record to the dead letters; on return it is delivered there and may be marked done.

        Raises:
            TooManyBad: more than `limit_in_a_row` without one handled between them, and the fault is not one task's.
            DeliveryError: the broker did not take it.
        """
        prompt, reason = _prompt_of(record), reason[:_TEXT_CHARACTERS]
        self._in_a_row[None if prompt is None else prompt.task_id] += 1
        in_a_row = self._in_a_row.total()
        if in_a_row > self._limit and not self._is_one_task_s_fault():
            raise TooManyBad(f"{in_a_row} messages in a row could not be handled, the last: {reason}")
        letter = DeadLetter(
            run_id=self._run_id,
            service=self._service,
            reason=reason,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            schema_header=record.headers.get("schema", b"").decode("utf-8", "replace")[:_TEXT_CHARACTERS],
            issue_id=None if prompt is None else prompt.issue_id,
            body=record.value[:BODY_BYTES],
        )
        self._producer.send(topics.DEAD_LETTERS.name, letter)
        self._producer.flush()
        metrics.DEAD_LETTERS.labels(self._service).inc()
        log.warning(
            "dead letter",
            extra={"topic": record.topic, "offset": record.offset, "issue_id": letter.issue_id, "reason": reason},
        )

    def _is_one_task_s_fault(self) -> bool:
        """Whether the whole row is of one task, and another one has been served by this process."""
        (task_id, *others) = self._in_a_row
        return task_id is not None and not others and bool(self._served - {task_id})


@contextmanager
def may_outlive_the_broker(stop: threading.Event) -> Iterator[None]:
    """Let a process that was told to stop end in order although the broker went before it, as when all goes at once.

    The log says what was not delivered. Nothing of it was committed: it comes again. Without `stop` set, a broker
    that fails crashes the process.
    """
    try:
        yield
    except (BrokerError, DeliveryError) as error:
        if not stop.is_set():
            raise
        log.warning("stopped without the broker: what it did not take comes again", extra={"reason": str(error)})


def _prompt_of(record: Record) -> Prompt | None:
    """The order that a message belongs to: its issue settles in the ledger, its task is counted."""
    try:
        message = record.message()
    except BadMessage:
        return None
    if isinstance(message, Trajectories):
        message = message.rollout
    if isinstance(message, Rollout):
        message = message.prompt
    return message if isinstance(message, Prompt) else None
