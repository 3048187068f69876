"""A share of a topic. One thread polls and commits, so that membership never depends on how long work takes.

An offset is committed after the record and all before it in its partition are done. When enough is in hand all
partitions are paused, and polling goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

from kafka import AsyncConsumerRebalanceListener, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from tba_common.in_hand import InHand
from tba_common.kafka_client import BrokerError, open_consumer, records_of
from tba_common.kafka_watch import LogWatch, Watchdog
from tba_common.record import Record
from tba_common.settings import WorkerSettings
from tba_common.sharing import StaticShare

_POLL_MS: Final = 50
_COMMIT_SECONDS: Final = 0.5
_COMMIT_TIMEOUT_MS: Final = 5_000
_COMMIT_PATIENCE_SECONDS: Final = 120.0
_WORK_PATIENCE_SECONDS: Final = 900.0
_CLOSE_SECONDS: Final = 5.0  # for the last commit and the farewell: a broker that is gone answers neither

log = logging.getLogger(__name__)


class Consumer:
    """The partitions of `topic` that fall to this process, shared as `settings.sharing` says.

    `group` is joined per run. At most `window` records are in hand, that is taken and not done.

    Raises:
        BrokerError: no broker or no such topic within a minute.
        ValueError: a window without room, or a process index outside the count.
    """

    def __init__(self, settings: WorkerSettings, topic: str, group: str, *, window: int) -> None:
        index, count = settings.process_index, settings.process_count
        if index >= count and settings.process_count_file is None:
            raise ValueError(f"process_index: expected less than process_count {count}, got {index}")
        self._topic = topic
        self._run_id = settings.run_id
        self._in_hand = InHand(window)
        self._closing = threading.Event()
        self._commit_at = self._commit_worked_at = time.monotonic()
        self._share: StaticShare | None = None
        self._client, self._partitions = open_consumer(settings.brokers, [topic], group_id=f"{group}.{settings.run_id}")
        self._logs = LogWatch(self._client)
        self._watchdog = Watchdog(self._client, in_group=settings.sharing == "group")
        if settings.sharing == "group":
            self._client.subscribe([topic], listener=_Rebalance(self._commit_before_they_go))
        else:
            self._assign(StaticShare(settings))
        self._thread = threading.Thread(target=self._poll_until_closed, name=f"poll-{topic}", daemon=True)
        self._thread.start()

    def take(self, limit: int, timeout_seconds: float) -> list[Record]:
        """Up to `limit` records, waiting for the first; empty when none came, the window is full, or draining.

        Raises what ended the polling thread, such as BrokerError: let it crash the process.
        """
        return self._in_hand.take(limit, timeout_seconds)

    def done(self, record: Record) -> None:
        """Say that the side effect of a record is safe. Any order, any thread; ignored if it is not in hand."""
        self._in_hand.done(record)

    def stop_taking(self) -> None:
        """Drain: what was not taken yet is given back, `take` returns nothing more, membership stays."""
        self._in_hand.drain()

    def close(self) -> None:
        """Commit what is done and leave. What is still in hand comes again, here or elsewhere."""
        self._closing.set()
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            log.warning("the broker does not answer: left without a farewell", extra={"topic": self._topic})

    def _poll_until_closed(self) -> None:
        try:
            while not self._closing.is_set():
                self._turn()
            self._commit()
        except BaseException as failure:  # crosses to the thread that takes, and crashes the process there
            self._in_hand.fail(failure)
        finally:
            self._client.close(autocommit=False, timeout_ms=int(_CLOSE_SECONDS * 1000))

    def _turn(self) -> None:
        if self._share is not None and self._share.changed():
            self._commit()  # who takes over goes on behind what is done
            self._assign(self._share)
        self._pause_or_resume()
        polled = self._client.poll(timeout_ms=_POLL_MS)
        self._in_hand.accept(records_of(polled), self._run_id)
        self._in_hand.keep({tp.partition for tp in self._client.assignment() - self._logs.rewind_lost()})
        now = time.monotonic()
        self._watchdog.look(now, got_records=bool(polled))
        if self._in_hand.seconds_without_progress(now) > _WORK_PATIENCE_SECONDS:
            raise BrokerError(f"records of {self._topic} in hand, none done within {_WORK_PATIENCE_SECONDS:.0f} s")
        if now > self._commit_at:
            self._commit()

    def _assign(self, share: StaticShare) -> None:
        own = set(share.of(len(self._partitions)))
        self._client.assign([tp for tp in self._partitions if tp.partition in own])
        self._share = share
        log.info("partitions assigned", extra={"partitions": sorted(own)})

    def _pause_or_resume(self) -> None:
        paused = self._client.paused()
        if self._in_hand.is_full():
            self._client.pause(*(self._client.assignment() - paused))  # gained partitions arrive unpaused
        else:
            self._client.resume(*paused)

    def _commit(self) -> None:
        offsets = self._in_hand.committable()
        try:
            if offsets:
                self._client.commit(self._kafka_offsets(offsets), timeout_ms=_COMMIT_TIMEOUT_MS)
        except KafkaError as error:  # a rebalance, or no broker: it stays committable, or the partition is lost
            if time.monotonic() - self._commit_worked_at > _COMMIT_PATIENCE_SECONDS:
                raise BrokerError(f"no commit worked within {_COMMIT_PATIENCE_SECONDS:.0f} s") from error
            log.info("commit failed, trying again", extra={"error": repr(error)})
        else:
            self._in_hand.committed(offsets)
            self._commit_worked_at = time.monotonic()
        self._commit_at = time.monotonic() + _COMMIT_SECONDS

    async def _commit_before_they_go(self, partitions: Collection[TopicPartition]) -> None:
        """Commit what is done of partitions that move to another member, so that it need not repeat it."""
        leaving = {tp.partition for tp in partitions}
        offsets = {p: offset for p, offset in self._in_hand.committable().items() if p in leaving}
        try:
            if offsets:
                await self._client.commit_async(self._kafka_offsets(offsets))
        except KafkaError as error:
            log.info("gave back partitions with work uncommitted", extra={"error": repr(error)})

    def _kafka_offsets(self, offsets: Mapping[int, int]) -> dict[TopicPartition, OffsetAndMetadata]:
        return {TopicPartition(self._topic, p): OffsetAndMetadata(offset, "", -1) for p, offset in offsets.items()}


class _Rebalance(AsyncConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python is untyped
    """Called on the client's I/O thread, where nothing may block: hence the asynchronous kind."""

    def __init__(self, on_revoked: Callable[[Collection[TopicPartition]], Awaitable[None]]) -> None:
        self._on_revoked = on_revoked

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._on_revoked(revoked)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        log.info("partitions assigned", extra={"partitions": sorted(tp.partition for tp in assigned)})

    async def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        log.info("partitions lost", extra={"partitions": sorted(tp.partition for tp in lost)})
