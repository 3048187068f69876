"""What every client of the wire shares: the connection, its options, the topics.

A broker that is not up yet is waited for, then named in the error; it is never a reason to crash at once.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaTimeoutError, NoError, TopicAlreadyExistsError

from tba_common.brokers import Brokers
from tba_common.record import Record
from tba_common.topics import Topic

_PATIENCE_SECONDS: Final = 60.0  # for a broker or a topic that is not there yet
RECORD_BYTES: Final = 4 << 20
_RETRY_SECONDS: Final = 0.5
_SESSION_SECONDS: Final = 10.0  # a member silent for this long loses its partitions

log = logging.getLogger(__name__)
_Client = TypeVar("_Client")


class BrokerError(Exception):
    """Kafka does not do its part: no broker, no topic, or records that wait and do not arrive."""


def connect(build: Callable[..., _Client], brokers: Brokers | str, **options: Any) -> _Client:
    """Build a client of kafka-python, waiting for a broker first.

    Raises:
        BrokerError: none answered within a minute.
    """
    _warn_without_crc32c()
    brokers = Brokers.of(brokers)
    servers, deadline = brokers.servers, time.monotonic() + _PATIENCE_SECONDS
    _wait_for_a_broker(servers, deadline)
    try:
        return build(
            bootstrap_servers=servers.split(","),
            bootstrap_timeout_ms=int(_PATIENCE_SECONDS * 1000),
            reconnect_backoff_max_ms=1_000,  # the default, 30 s, would outlast most outages
            **security_options(brokers),
            **options,
        )
    except KafkaTimeoutError as error:
        raise _no_broker(servers) from error


def security_options(brokers: Brokers) -> dict[str, Any]:
    """How the brokers let a client in, as kafka-python calls it."""
    options: dict[str, Any] = {"security_protocol": brokers.security_protocol}
    if brokers.wants_password:
        options |= {"sasl_mechanism": brokers.sasl_mechanism}
        options |= {"sasl_plain_username": brokers.username, "sasl_plain_password": brokers.password}
    if brokers.encrypts and brokers.ca_file is not None:
        options["ssl_cafile"] = str(brokers.ca_file)
    return options


def open_consumer(
    brokers: Brokers | str, topics: Iterable[str], *, group_id: str | None = None
) -> tuple[KafkaConsumer, list[TopicPartition]]:
    """A consumer of bytes that commits nothing by itself, and all partitions of the topics, once they exist.

    `max_poll_records` is without bound because a paused partition that still holds parsed records would never be
    fetched again; `fetch_max_bytes` bounds memory instead. Deserialisers are absent because a raising one spins.

    Raises:
        BrokerError: no broker, or a topic that does not exist, within a minute.
    """
    client = connect(
        KafkaConsumer,
        brokers,
        group_id=group_id,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_poll_records=1_000_000,
        fetch_max_bytes=2 * RECORD_BYTES,
        max_partition_fetch_bytes=RECORD_BYTES,
        fetch_max_wait_ms=100,  # a resumed partition waits for the long poll of its neighbours
        session_timeout_ms=int(_SESSION_SECONDS * 1000),
        heartbeat_interval_ms=int(_SESSION_SECONDS * 1000 / 3),
        max_poll_interval_ms=60_000,  # also how long a rebalance waits for a member; we poll all the time
        partition_assignment_strategy=[CooperativeStickyAssignor()],
    )
    forbid_auto_creation(client._cluster)
    try:
        return client, [partition for topic in topics for partition in _partitions_of(client, topic)]
    except BrokerError:
        client.close(autocommit=False)
        raise


def forbid_auto_creation(cluster: Any) -> None:
    """Keep metadata requests from creating topics with the broker's own number of partitions.

    kafka-python 3.0.12 takes `allow_auto_create_topics` and drops it on the way to the metadata request.
    """
    cluster.config["allow_auto_create_topics"] = False


def records_of(polled: Mapping[TopicPartition, Iterable[Any]]) -> list[Record]:
    """What a poll returned, in order within each partition."""
    return [_record(raw) for records in polled.values() for raw in records]


def create_topics(brokers: Brokers | str, topics: Sequence[Topic]) -> list[str]:
    """Create the topics that do not exist, wait until all are usable, return the names of those created.

    Raises:
        BrokerError: no broker, a topic that it refuses, or one without a leader after a minute.
    """
    admin = connect(KafkaAdminClient, brokers)
    try:
        answer = admin.create_topics({topic.name: _topic_options(topic) for topic in topics}, raise_errors=False)
        for result in answer["topics"]:
            if result["error_code"] not in (NoError.errno, TopicAlreadyExistsError.errno):
                raise BrokerError(f"cannot create topic {result['name']}: {result['error_message']}")
        admin.wait_for_topics([topic.name for topic in topics], timeout_ms=int(_PATIENCE_SECONDS * 1000))
        _warn_of_other_partitions(admin, topics)
    except KafkaTimeoutError as error:
        raise BrokerError(f"topics not usable at {Brokers.of(brokers).servers}: {error}") from error
    finally:
        admin.close()
    return [result["name"] for result in answer["topics"] if result["error_code"] == NoError.errno]


def wait_for_topics(brokers: Brokers | str, topics: Sequence[Topic]) -> None:
    """Wait for as long as it takes: for a broker, and until somebody has created the topics."""
    while True:
        try:
            admin = connect(KafkaAdminClient, brokers)
        except BrokerError as error:
            log.warning("waiting for Kafka", extra={"error": str(error)})
            continue
        try:
            admin.wait_for_topics([topic.name for topic in topics], timeout_ms=int(_PATIENCE_SECONDS * 1000))
            return
        except KafkaTimeoutError as error:
            log.info("waiting for topics", extra={"error": str(error)})
        finally:
            admin.close()


def _wait_for_a_broker(servers: str, deadline: float) -> None:
    while not any(map(_answers, servers.split(","))):
        if time.monotonic() > deadline:
            raise _no_broker(servers)
        log.warning("waiting for Kafka", extra={"servers": servers})
        time.sleep(_RETRY_SECONDS)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
    except OSError:
        return False
    return True


def _no_broker(servers: str) -> BrokerError:
    return BrokerError(f"no Kafka broker answered at {servers} within {_PATIENCE_SECONDS:.0f} s")


def _partitions_of(client: KafkaConsumer, topic: str) -> list[TopicPartition]:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not (found := client.partitions_for_topic(topic)):
        if time.monotonic() > deadline:
            raise BrokerError(f"no topic {topic} within {_PATIENCE_SECONDS:.0f} s: run `python -m tba_common.topics`")
        log.warning("waiting for topic", extra={"topic": topic})
        time.sleep(_RETRY_SECONDS)
    return [TopicPartition(topic, partition) for partition in sorted(found)]


def _record(raw: Any) -> Record:
    headers = {name: value or b"" for name, value in raw.headers or ()}
    return Record(raw.topic, raw.partition, raw.offset, raw.key, raw.value or b"", headers)


@functools.cache
def _warn_without_crc32c() -> None:
    if importlib.util.find_spec("crc32c") is None:
        log.warning("crc32c is missing: large records move ten times slower; pip install crc32c")


def _warn_of_other_partitions(admin: KafkaAdminClient, topics: Sequence[Topic]) -> None:
    expected = {topic.name: topic.partitions for topic in topics}
    for found in admin.describe_topics(list(expected)):
        name, partitions = found["name"], len(found["partitions"])
        if partitions != expected[name]:
            fields = {"topic": name, "expected": expected[name], "got": partitions}
            log.warning("topic has another number of partitions", extra=fields)


def _topic_options(topic: Topic) -> dict[str, Any]:
    configs = {
        "cleanup.policy": "compact" if topic.compact else "delete",
        "max.message.bytes": str(topic.max_message_bytes),
        "retention.ms": str(topic.retention_ms),
    }
    # -1: the broker's default replication, 1 on a laptop and 3 in production
    return {"num_partitions": topic.partitions, "replication_factor": -1, "configs": configs}
