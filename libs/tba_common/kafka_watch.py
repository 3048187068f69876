"""What a consumer of kafka-python does not notice by itself: a log that was lost, and records that do not come.

A broker that restarts empty has new logs under the old names; offsets of the old ones mean nothing there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import MemberState

from tba_common.kafka_client import BrokerError

_LOOK_SECONDS: Final = 0.5
_STALLED_SECONDS: Final = 60.0
_UNREACHABLE_SECONDS: Final = 300.0
_ASK_MS: Final = 5_000

log = logging.getLogger(__name__)


class LogWatch:
    """Finds logs that are not the ones we were reading. Used by the thread that polls."""

    def __init__(self, client: KafkaConsumer) -> None:
        self._client = client
        self._topic_ids: dict[str, Any] = {}
        self._trusted: set[TopicPartition] = set()  # our position lies within the log
        self._looked_at = 0.0

    def rewind_lost(self) -> set[TopicPartition]:
        """Start lost logs from their beginning; return which ones."""
        if time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return set()
        self._looked_at = time.monotonic()
        partitions = self._client.assignment()
        recreated = self._recreated({tp.topic for tp in partitions})
        lost = {tp for tp in partitions if tp.topic in recreated}
        lost |= self._beyond_end(partitions - lost - self._trusted)
        if lost:
            log.warning("log was lost: reading from its start", extra={"partitions": sorted(map(_name, lost))})
            self._client.seek_to_beginning(*lost)
        self._trusted = (self._trusted & partitions) | lost
        return lost

    def _recreated(self, topics: Collection[str]) -> set[str]:
        """Topics whose id changed (KIP-516): deleted and created anew, or of a broker that forgot."""
        known = {topic: self._client._cluster.topic_id(topic) for topic in topics}
        known = {topic: topic_id for topic, topic_id in known.items() if topic_id is not None}
        changed = {topic for topic, topic_id in known.items() if self._topic_ids.get(topic, topic_id) != topic_id}
        self._topic_ids |= known
        return changed

    def _beyond_end(self, partitions: Collection[TopicPartition]) -> set[TopicPartition]:
        """Logs that end before the stored offset we start from, which not every broker calls out of range.

        A new leader's high watermark may lag for a moment, so the end is asked for as well: what ListOffsets
        answers never goes back (KIP-207).
        """
        fetched = [tp for tp in partitions if self._client.highwater(tp) is not None]
        positions = _positions(self._client, fetched)
        suspects = {tp: at for tp, at in positions.items() if at > self._client.highwater(tp)}
        self._trusted |= positions.keys() - suspects.keys()
        if not suspects:
            return set()
        try:
            ends = self._client.end_offsets(list(suspects), timeout_ms=_ASK_MS)
        except KafkaError:
            return set()  # the broker is away, or elects a leader: look again later
        return {tp for tp, at in suspects.items() if at > ends[tp]}


class Watchdog:
    """Turns silence into an exception, so that the process is restarted. Used by the thread that polls."""

    def __init__(self, client: KafkaConsumer, *, in_group: bool = False) -> None:
        self._client = client
        self._in_group = in_group
        self._behind: dict[TopicPartition, int] = {}
        self._asked_at = self._reached_at = self._settled_at = time.monotonic()

    def look(self, now: float, *, got_records: bool) -> None:
        """Call after each poll; `now` is time.monotonic().

        Raises:
            BrokerError: records wait and are not fetched, no broker answers, or the group does not settle.
        """
        if got_records:
            self._asked_at = self._reached_at = now
            self._behind.clear()
        elif now - self._asked_at > _STALLED_SECONDS:
            self._ask(now)
            self._asked_at = now
        if not self._in_group or self._client.group_metadata().state == MemberState.STABLE:
            self._settled_at = now
        elif now - self._settled_at > 2 * _STALLED_SECONDS:
            raise BrokerError(f"the consumer group did not settle within {2 * _STALLED_SECONDS:.0f} s")

    def _ask(self, now: float) -> None:
        partitions = self._client.assignment() - self._client.paused()
        try:
            ends = self._client.end_offsets(list(partitions), timeout_ms=_ASK_MS)
        except KafkaError as error:
            if now - self._reached_at > _UNREACHABLE_SECONDS:
                raise BrokerError(f"no broker answered for {_UNREACHABLE_SECONDS:.0f} s") from error
            log.warning("Kafka does not answer", extra={"seconds": round(now - self._reached_at)})
            return
        self._reached_at = now
        behind = {tp: at for tp, at in _positions(self._client, partitions).items() if at < ends[tp]}
        stuck = [tp for tp, at in behind.items() if self._behind.get(tp) == at]
        if stuck:
            raise BrokerError(f"records wait but do not arrive: {', '.join(map(_name, stuck))}")
        self._behind = behind


def _positions(client: KafkaConsumer, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
    """The next offset to fetch, of the partitions where that is settled."""
    positions = {tp: client.position(tp, timeout_ms=0) for tp in partitions}
    return {tp: position for tp, position in positions.items() if position is not None}


def _name(partition: TopicPartition) -> str:
    return f"{partition.topic}/{partition.partition}"
