"""Messages out: acknowledged by all replicas, in order per partition, a bounded number in flight.

Deliberately without Kafka's idempotent producer: a broker that lost its state refuses such a producer for ever,
and whoever reads us drops duplicates by id anyway. One request in flight keeps the order over retries instead.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from tba_common.brokers import Brokers
from tba_common.codec import BadMessage, encode
from tba_common.kafka_client import RECORD_BYTES, connect, forbid_auto_creation
from tba_common.messages import Message

_REQUEST_SECONDS: Final = 30.0  # a broker that takes longer to answer is asked again
_DELIVERY_SECONDS: Final = 120.0  # a broker may be away for this long before a send fails

log = logging.getLogger(__name__)


class DeliveryError(Exception):
    """A message was not acknowledged. What depended on it must not be committed: let the process crash."""


class Producer:
    """Thread-safe. Memory is bounded: `send` blocks while `max_in_flight` messages wait for their ack."""

    def __init__(self, brokers: Brokers | str, run_id: str, *, max_in_flight: int = 1_000) -> None:
        self._run = run_id.encode()
        self._room = threading.BoundedSemaphore(max_in_flight)
        self._max_in_flight = max_in_flight
        self._lock = threading.Lock()
        self._failed: list[str] = []  # guarded by the lock
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
            DeliveryError: an earlier send failed, or there is no topic, or no room for two minutes.
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
        if not self._room.acquire(timeout=_DELIVERY_SECONDS + 10):
            raise DeliveryError(f"{self._max_in_flight} messages wait for their ack: the broker does not answer")
        try:
            future = self._client.send(
                topic,
                value=body,
                key=None if key is None else key.encode(),
                partition=partition,
                headers=[("schema", schema.encode()), ("run", self._run)],
            )
        except MessageSizeTooLargeError as error:
            self._room.release()
            raise BadMessage(f"{schema} of {len(body)} bytes: a record holds at most {RECORD_BYTES}") from error
        except (KafkaError, ValueError) as error:  # ValueError: no such partition
            self._room.release()
            raise DeliveryError(f"cannot send {schema} to {topic}: {error!r}") from error
        future.add_callback(partial(self._on_ack, on_delivery))
        future.add_errback(partial(self._on_error, f"{schema} to {topic}"))

    def flush(self, timeout_seconds: float = 30.0) -> None:
        """Wait until everything sent so far is acknowledged.

        Raises:
            DeliveryError: a send since the last flush failed, or time ran out.
        """
        try:
            self._client.flush(timeout_seconds)
        except KafkaTimeoutError as error:
            raise DeliveryError(f"messages not acknowledged within {timeout_seconds:g} s") from error
        self._raise_failure()

    def close(self) -> None:
        """Flush and disconnect. Raises what `flush` raises."""
        try:
            self.flush()
        finally:
            with contextlib.suppress(KafkaTimeoutError):  # it flushes again, and flush has already complained
                self._client.close(timeout=1)

    def _on_ack(self, on_delivery: Callable[[], None] | None, _metadata: object) -> None:
        self._room.release()
        if on_delivery is not None:
            on_delivery()

    def _on_error(self, what: str, error: BaseException) -> None:
        log.error("send failed", extra={"what": what, "error": repr(error)})
        with self._lock:
            self._failed.append(f"{what}: {error!r}")
        self._room.release()

    def _raise_failure(self) -> None:
        with self._lock:
            failed, self._failed = self._failed, []
        if failed:
            raise DeliveryError(f"{len(failed)} messages were not delivered, the first: {failed[0]}")
