"""Messages out: acknowledged by all replicas, in order per partition, a bounded number in flight.

Deliberately without Kafka's idempotent producer: a broker that lost its state refuses such a producer for ever,
and whoever reads us drops duplicates by id anyway. One request in flight keeps the order over retries instead.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from kafka import KafkaProducer
from kafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RetriableError,
    UnknownError,
    kafka_errors,
)

from tba_common.brokers import Brokers
from tba_common.codec import BadMessage, encode
from tba_common.kafka_client import RECORD_BYTES, connect, forbid_auto_creation
from tba_common.messages import Message

_REQUEST_SECONDS: Final = 30.0  # a broker that takes longer to answer is asked again
_DELIVERY_SECONDS: Final = 120.0  # a broker may be away for this long before a send fails
#: What a process that was told to stop gives a broker that does not answer, in all: it may have gone for good.
LAST_SECONDS: Final = 4.0
_LOOK_SECONDS: Final = 0.25  # how often a wait looks whether it was
_NAMED: Final = 20  # undelivered messages that an error names

log = logging.getLogger(__name__)


class _Unexplained(UnknownError, RetriableError):  # type: ignore[misc]  # the library has no types
    """The broker failed and cannot say at what, as the embedded one does when it came back empty and all write at once.

    The library would give up where another try succeeds, and only the library tries again in order.
    """


kafka_errors[UnknownError.errno] = _Unexplained


class DeliveryError(Exception):
    """A message was not acknowledged. What depended on it must not be committed: let the process crash."""


class Producer:
    """Thread-safe. Memory is bounded: `send` blocks while `max_in_flight` messages wait for their ack.

    Once `stop` is set, nothing waits longer than `LAST_SECONDS` for a broker that does not answer.
    """

    def __init__(
        self, brokers: Brokers | str, run_id: str, *, max_in_flight: int = 1_000, stop: threading.Event | None = None
    ) -> None:
        self._run = run_id.encode()
        self._room = threading.BoundedSemaphore(max_in_flight)
        self._max_in_flight = max_in_flight
        self._lock = threading.Lock()
        self._failed: list[str] = []  # guarded by the lock
        self._waiting: dict[object, str] = {}  # sent and not acknowledged, in this order; guarded by the lock
        self._stop = stop or threading.Event()
        self._give_up_at = float("inf")
        self._client = connect(
            KafkaProducer,
            brokers,
            acks="all",
            enable_idempotence=False,
            max_in_flight_requests_per_connection=1,
            request_timeout_ms=int(_REQUEST_SECONDS * 1000),
            delivery_timeout_ms=int(_DELIVERY_SECONDS * 1000),
            linger_ms=5,
            batch_size=256 << 10,
            compression_type="zstd",
            max_request_size=RECORD_BYTES,
        )
        forbid_auto_creation(self._client._metadata)

    def send(
        self,
        topic: str,
        message: Message,
        *,
        key: str | None = None,
        partition: int | None = None,
        on_delivery: Callable[[], None] | None = None,
    ) -> None:
        """Send a message; `on_delivery` runs after the broker's ack, on the client's thread: keep it short.

        Raises:
            DeliveryError: an earlier send failed, or there is no topic, or no room for two minutes, or in a process
                that stops for a few seconds.
            BadMessage: the encoded message is larger than a record may be.
        """
        schema, body = encode(message)
        self.send_bytes(topic, schema, body, key=key, partition=partition, on_delivery=on_delivery)

    def send_bytes(
        self,
        topic: str,
        schema: str,
        body: bytes,
        *,
        key: str | None = None,
        partition: int | None = None,
        on_delivery: Callable[[], None] | None = None,
    ) -> None:
        """Send a message that is encoded already, perhaps wrongly, as it is. Raises what `send` raises."""
        self._raise_failure()
        if not self._within(_DELIVERY_SECONDS + 10, lambda seconds: self._room.acquire(timeout=seconds)):
            raise DeliveryError(f"{self._max_in_flight} messages wait for their ack: the broker does not answer")
        what, ticket = f"{schema} to {topic}" + ("" if key is None else f" with key {key}"), object()
        with self._lock:
            self._waiting[ticket] = what
        try:
            future = self._client.send(
                topic,
                value=body,
                key=None if key is None else key.encode(),
                partition=partition,
                headers=[("schema", schema.encode()), ("run", self._run)],
            )
        except MessageSizeTooLargeError as error:
            self._ended(ticket)
            raise BadMessage(f"{schema} of {len(body)} bytes: a record holds at most {RECORD_BYTES}") from error
        except (KafkaError, ValueError) as error:  # ValueError: no such partition
            self._ended(ticket)
            raise DeliveryError(f"cannot send {schema} to {topic}: {error!r}") from error
        future.add_callback(partial(self._on_ack, ticket, on_delivery))
        future.add_errback(partial(self._on_error, ticket, what))

    def flush(self, timeout_seconds: float = 30.0) -> None:
        """Wait until everything sent so far is acknowledged; in a process that stops, a few seconds at most.

        Raises:
            DeliveryError: a send since the last flush failed, or time ran out; names what was not delivered.
        """
        if not self._within(timeout_seconds, self._flushed):
            late = ", and the process stops" if self._stop.is_set() else f" within {timeout_seconds:g} s"
            raise DeliveryError(f"not acknowledged{late}: {self._undelivered()}")
        self._give_up_at = float("inf")
        self._raise_failure()

    def close(self) -> None:
        """Flush and disconnect. Raises what `flush` raises."""
        try:
            self.flush()
        finally:
            with contextlib.suppress(KafkaTimeoutError):  # it flushes again, and flush has already complained
                self._client.close(timeout=1)

    def _within(self, seconds: float, attempt: Callable[[float], bool]) -> bool:
        """Try for so many seconds, or for the last ones of a process that stops; `attempt` takes how long it may."""
        deadline = time.monotonic() + seconds
        while not attempt(min(_LOOK_SECONDS, max(deadline - time.monotonic(), 0.0))):
            now = time.monotonic()
            if self._stop.is_set():
                self._give_up_at = min(self._give_up_at, now + LAST_SECONDS)
            if now >= min(deadline, self._give_up_at):
                return False
        return True

    def _flushed(self, seconds: float) -> bool:
        try:
            self._client.flush(seconds)
        except KafkaTimeoutError:
            return False
        return True

    def _undelivered(self) -> str:
        with self._lock:
            waiting = list(self._waiting.values())
        more = f" and {len(waiting) - _NAMED} more" if len(waiting) > _NAMED else ""
        return ", ".join(waiting[:_NAMED]) + more

    def _on_ack(self, ticket: object, on_delivery: Callable[[], None] | None, _metadata: object) -> None:
        self._ended(ticket)
        if on_delivery is not None:
            on_delivery()

    def _on_error(self, ticket: object, what: str, error: BaseException) -> None:
        log.error("send failed", extra={"what": what, "error": repr(error)})
        with self._lock:
            self._failed.append(f"{what}: {error!r}")
        self._ended(ticket)

    def _ended(self, ticket: object) -> None:
        with self._lock:
            del self._waiting[ticket]
        self._room.release()

    def _raise_failure(self) -> None:
        with self._lock:
            failed, self._failed = self._failed, []
        if failed:
            raise DeliveryError(f"{len(failed)} messages were not delivered, the first: {failed[0]}")
