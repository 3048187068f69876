"""The wire on a real broker: nothing lost, nothing committed too early, pressure passed back."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from tba_common import kafka_client
from tba_common.codec import BadMessage
from tba_common.delivery import DeadLetters
from tba_common.kafka import BrokerError, Consumer, DeliveryError, Producer, Reader, Record, create_topics
from tba_common.messages import DeadLetter, Resumed, Weights
from tba_common.settings import WorkerSettings
from tba_common.topics import DEAD_LETTERS, PROMPTS, TRAJECTORIES, Topic

pytestmark = pytest.mark.integration

DEADLINE_SECONDS: Final = 60.0
GROUP: Final = "tba-test"
TOPIC: Final = TRAJECTORIES.name


@pytest.fixture
def open_until_end() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def producer(broker: str, run_id: str, open_until_end: ExitStack) -> Producer:
    return open_until_end.enter_context(closing(Producer(broker, run_id)))


@pytest.fixture
def consume(broker: str, run_id: str, open_until_end: ExitStack) -> Callable[..., Consumer]:
    """Open a consumer of this test's run; it is closed when the test ends, or before."""

    def consume(
        topic: str = TOPIC, *, window: int = 100, index: int = 0, count: int = 1, sharing: str = "static"
    ) -> Consumer:
        settings = WorkerSettings.model_validate(
            {"run_id": run_id, "kafka_servers": broker, "sharing": sharing}
            | {"process_index": index, "process_count": count}
        )
        consumer = Consumer(settings, topic, GROUP, window=window)
        open_until_end.callback(consumer.close)
        return consumer

    return consume


def send_numbers(producer: Producer, run_id: str, count: int, *, topic: str = TOPIC, partition: int | None = 0) -> None:
    for number in range(count):
        producer.send(topic, Resumed(run_id=run_id, batch_id=number, step=0), key=str(number), partition=partition)
    producer.flush()


def number_of(record: Record) -> int:
    message = record.message()
    assert isinstance(message, Resumed)
    return message.batch_id


def take(consumer: Consumer, count: int, *, finish: bool = False) -> list[Record]:
    """Take until `count` records came; fewer only when the deadline passes."""
    taken: list[Record] = []
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(taken) < count and time.monotonic() < deadline:
        for record in consumer.take(count - len(taken), 0.5):
            taken.append(record)
            if finish:
                consumer.done(record)
    return taken


def read(reader: Reader, count: int) -> list[Record]:
    records: list[Record] = []
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(records) < count and time.monotonic() < deadline:
        records += reader.poll(0.5)
    return records


def test_a_message_arrives_as_it_was_sent(producer: Producer, consume: Callable[..., Consumer], run_id: str) -> None:
    weights = Weights(run_id=run_id, version=3, step=6, uri="file:///w", digest="0" * 64, steps_per_version=2)
    producer.send(TOPIC, weights, key="some-key", partition=2)
    (record,) = take(consume(), 1)
    assert record.message() == weights
    assert (record.topic, record.partition, record.key) == (TOPIC, 2, b"some-key")
    assert record.headers == {"schema": b"weights/1", "run": run_id.encode()}


def wait_until_committed(broker: str, run_id: str, records: Iterable[Record]) -> None:
    """Ask the broker until nobody would read these again."""
    wanted = {(TopicPartition(record.topic, record.partition), record.offset + 1) for record in records}
    deadline = time.monotonic() + DEADLINE_SECONDS
    with closing(KafkaAdminClient(bootstrap_servers=broker)) as admin:
        found: set[tuple[TopicPartition, int]] = set()
        while not wanted <= found:
            assert time.monotonic() < deadline, f"committed: {found}"
            (offsets,) = admin.list_group_offsets(f"{GROUP}.{run_id}").values()
            found = {(partition, committed.offset) for partition, committed in offsets.items()}


def test_messages_of_one_key_keep_their_order(
    producer: Producer, consume: Callable[..., Consumer], run_id: str
) -> None:
    for number in range(50):
        producer.send(TOPIC, Resumed(run_id=run_id, batch_id=number, step=0), key="always-the-same")
    assert [number_of(record) for record in take(consume(), 50)] == list(range(50))


def test_static_sharing_covers_every_partition_exactly_once(
    producer: Producer, consume: Callable[..., Consumer], run_id: str
) -> None:
    for partition in range(PROMPTS.partitions):
        message = Resumed(run_id=run_id, batch_id=partition, step=0)
        producer.send(PROMPTS.name, message, partition=partition)
    producer.flush()
    shares = []
    for index in range(3):
        consumer = consume(PROMPTS.name, index=index, count=3)
        shares.append(sorted(record.partition for record in take(consumer, PROMPTS.partitions // 3)))
        assert consumer.take(1, 0.2) == []
    assert shares == [list(range(index, PROMPTS.partitions, 3)) for index in range(3)]


def test_a_share_follows_the_count_in_a_file_and_what_was_done_is_not_read_again(
    producer: Producer,
    broker: str,
    run_id: str,
    open_until_end: ExitStack,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="tba_common.kafka_consumer")
    count = tmp_path / "count"

    def share_among(members: int) -> None:
        (tmp_path / "aside").write_text(str(members))
        (tmp_path / "aside").replace(count)  # whoever reads sees the old count or the new one

    def member(index: int) -> Consumer:
        settings = WorkerSettings.model_validate(
            {"run_id": run_id, "kafka_servers": broker, "sharing": "static"}
            | {"process_index": index, "process_count_file": count}
        )
        consumer = Consumer(settings, PROMPTS.name, GROUP, window=100)
        open_until_end.callback(consumer.close)
        return consumer

    def send(number: int) -> None:
        for partition in range(PROMPTS.partitions):
            message = Resumed(run_id=run_id, batch_id=number, step=0)
            producer.send(PROMPTS.name, message, partition=partition)
        producer.flush()

    share_among(1)
    one, two = member(0), member(1)
    send(1)
    taken = take(one, PROMPTS.partitions)
    for record in taken:
        one.done(record)
    assert two.take(1, 0.3) == []
    wait_until_committed(broker, run_id, taken)  # who takes over reads on behind that, not behind what is done
    caplog.clear()
    share_among(2)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while [record.getMessage() for record in caplog.records].count("partitions assigned") < 2:
        assert time.monotonic() < deadline
        one.take(1, 0.05)
    send(2)
    half = PROMPTS.partitions // 2
    shares = [take(consumer, half) for consumer in (one, two)]
    assert [sorted(record.partition for record in share) for share in shares] == [
        list(range(half)),
        list(range(half, PROMPTS.partitions)),
    ]
    assert {number_of(record) for share in shares for record in share} == {2}


def test_a_process_beyond_the_partitions_has_nothing_to_do(
    producer: Producer, consume: Callable[..., Consumer], run_id: str
) -> None:
    send_numbers(producer, run_id, 4)
    assert consume(index=5, count=6).take(1, 0.3) == []


def test_a_process_index_outside_the_count_is_refused(consume: Callable[..., Consumer]) -> None:
    with pytest.raises(ValueError, match="process_index: expected less than process_count 2, got 2"):
        consume(index=2, count=2)


def test_group_sharing_moves_work_to_a_member_that_joins_and_back_when_it_leaves(
    monkeypatch: pytest.MonkeyPatch, producer: Producer, consume: Callable[..., Consumer], run_id: str
) -> None:
    monkeypatch.setattr("tba_common.kafka_client._SESSION_SECONDS", 6.0)  # a first join takes half of it
    first, second = consume(sharing="group"), consume(sharing="group")
    came: set[int] = set()
    by_second = 0
    deadline = time.monotonic() + DEADLINE_SECONDS
    sent = 0
    while not by_second and time.monotonic() < deadline:
        producer.send(TOPIC, Resumed(run_id=run_id, batch_id=sent, step=0), partition=sent % 4)
        sent += 1
        for member in (first, second):
            for record in member.take(10, 0.05):
                came.add(number_of(record))
                by_second += member is second
                member.done(record)
    assert by_second
    second.close()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(came) < sent and time.monotonic() < deadline:
        for record in first.take(10, 0.5):
            came.add(number_of(record))
            first.done(record)
    assert came == set(range(sent))


def test_a_restarted_consumer_reads_again_from_the_first_unfinished_record(
    producer: Producer, consume: Callable[..., Consumer], run_id: str
) -> None:
    send_numbers(producer, run_id, 10)
    consumer = consume()
    records = take(consumer, 10)
    for position in (4, 2, 0, 1, 7):
        consumer.done(records[position])
    consumer.close()
    assert [number_of(record) for record in take(consume(), 7)] == [3, 4, 5, 6, 7, 8, 9]


def test_finished_work_is_committed_while_other_work_goes_on(
    producer: Producer, consume: Callable[..., Consumer], run_id: str
) -> None:
    send_numbers(producer, run_id, 4)
    consumer = consume()
    first, *_ = take(consumer, 4)
    consumer.done(first)
    deadline = time.monotonic() + DEADLINE_SECONDS
    seen = [0]
    while seen[0] == 0 and time.monotonic() < deadline:  # another process looks at what is committed by now
        other = consume()
        seen = [number_of(record) for record in take(other, 1)]
        other.close()
    assert seen == [1]


def test_everything_finished_is_not_read_again(
    producer: Producer, consume: Callable[..., Consumer], run_id: str
) -> None:
    send_numbers(producer, run_id, 10, partition=None)
    consumer = consume()
    assert len(take(consumer, 10, finish=True)) == 10
    consumer.close()
    assert consume().take(1, 0.5) == []


def test_no_more_than_the_window_is_handed_out_until_something_is_done(
    producer: Producer, consume: Callable[..., Consumer], run_id: str
) -> None:
    send_numbers(producer, run_id, 10)
    consumer = consume(window=4)
    records = take(consumer, 4)
    assert consumer.take(10, 0.2) == []
    consumer.done(records[2])
    assert [number_of(record) for record in take(consumer, 1)] == [4]


def test_a_partition_paused_while_it_held_records_is_read_to_its_end(
    producer: Producer, consume: Callable[..., Consumer], run_id: str
) -> None:
    """kafka-python 3.0.12 never fetches such a partition again when a poll may return only part of a batch."""
    consumer = consume(window=2)
    for _ in range(3):  # batches of many records, arriving while the window is full and after
        send_numbers(producer, run_id, 30, partition=0)
        send_numbers(producer, run_id, 30, partition=1)
        assert len(take(consumer, 60, finish=True)) == 60


def test_after_the_drain_nothing_is_taken_and_the_rest_comes_again(
    producer: Producer, consume: Callable[..., Consumer], run_id: str
) -> None:
    send_numbers(producer, run_id, 4)
    consumer = consume()
    (first,) = take(consumer, 1)
    consumer.stop_taking()
    assert consumer.take(4, 0.2) == []
    consumer.done(first)
    consumer.close()
    assert [number_of(record) for record in take(consume(), 3)] == [1, 2, 3]


def test_records_of_another_run_are_never_seen(
    broker: str, producer: Producer, consume: Callable[..., Consumer], run_id: str
) -> None:
    with closing(Producer(broker, "another-run")) as other:
        send_numbers(other, "another-run", 3)
    send_numbers(producer, run_id, 1)
    with closing(Reader(broker, run_id, [TOPIC], {})) as reader:
        assert [record.headers["run"] for record in read(reader, 1)] == [run_id.encode()]
    consumer = consume()
    assert [record.headers["run"] for record in take(consumer, 1)] == [run_id.encode()]
    assert consumer.take(1, 0.2) == []


def test_bytes_that_are_no_message_arrive_and_are_refused_when_decoded(
    broker: str, consume: Callable[..., Consumer], run_id: str
) -> None:
    stranger = KafkaProducer(bootstrap_servers=broker)
    stranger.send(TOPIC, b"noise", headers=[("schema", b"resumed/1"), ("run", run_id.encode())])
    stranger.close()
    (record,) = take(consume(), 1)
    with pytest.raises(BadMessage, match="resumed/1 does not decode"):
        record.message()


def test_a_rejected_record_is_found_in_the_dead_letters_with_its_reason(
    broker: str, producer: Producer, consume: Callable[..., Consumer], run_id: str
) -> None:
    send_numbers(producer, run_id, 1)
    (record,) = take(consume(), 1)
    DeadLetters(producer, run_id, "tba-test").reject(record, "not to our taste")
    with closing(Reader(broker, run_id, [DEAD_LETTERS.name], {})) as reader:
        (found,) = read(reader, 1)
    letter = found.message()
    assert isinstance(letter, DeadLetter)
    assert (letter.reason, letter.service, letter.offset) == ("not to our taste", "tba-test", record.offset)
    assert letter.body == record.value


def test_a_reader_goes_on_from_the_offsets_it_is_given(broker: str, producer: Producer, run_id: str) -> None:
    send_numbers(producer, run_id, 5, partition=0)
    send_numbers(producer, run_id, 5, partition=1)
    with closing(Reader(broker, run_id, [TOPIC], {})) as reader:
        records = read(reader, 10)
    third = next(record for record in records if record.partition == 0 and number_of(record) == 2)
    with closing(Reader(broker, run_id, [TOPIC], {(TOPIC, 0): third.offset + 1})) as reader:
        again = read(reader, 7)
        assert sorted((record.partition, number_of(record)) for record in again) == [
            *((0, number) for number in (3, 4)),
            *((1, number) for number in range(5)),
        ]
        reader.seek(TOPIC, 0, third.offset)
        assert [number_of(record) for record in read(reader, 3)] == [2, 3, 4]


def test_a_reader_returns_at_most_the_limit_and_loses_nothing(broker: str, producer: Producer, run_id: str) -> None:
    send_numbers(producer, run_id, 10)
    numbers: list[int] = []
    deadline = time.monotonic() + DEADLINE_SECONDS
    with closing(Reader(broker, run_id, [TOPIC], {})) as reader:
        while len(numbers) < 10 and time.monotonic() < deadline:
            records = reader.poll(0.5, limit=3)
            assert len(records) <= 3
            numbers += [number_of(record) for record in records]
    assert numbers == list(range(10))


def test_a_stored_offset_beyond_the_end_of_a_fresh_log_counts_as_none(
    broker: str, producer: Producer, run_id: str
) -> None:
    send_numbers(producer, run_id, 5, partition=3)
    with closing(Reader(broker, run_id, [TOPIC], {(TOPIC, 3): 1_000_000})) as reader:
        assert [number_of(record) for record in read(reader, 5)] == [0, 1, 2, 3, 4]


def test_a_message_too_large_for_a_record_is_a_bad_message(producer: Producer, run_id: str) -> None:
    huge = DeadLetter(
        run_id=run_id,
        service="",
        reason="",
        topic="",
        partition=0,
        offset=0,
        schema_header="",
        issue_id=None,
        body=bytes(5 << 20),
    )
    with pytest.raises(BadMessage, match=r"deadletter/1 of 5\d+ bytes: a record holds at most 4194304"):
        producer.send(DEAD_LETTERS.name, huge)


def test_a_large_message_arrives(producer: Producer, consume: Callable[..., Consumer], run_id: str) -> None:
    message = Weights(run_id=run_id, version=1, step=1, uri="x" * (3 << 20), digest="", steps_per_version=1)
    producer.send(TOPIC, message)
    producer.flush()
    (record,) = take(consume(), 1)
    assert record.message() == message


def test_a_partition_that_does_not_exist_is_a_delivery_error(producer: Producer, run_id: str) -> None:
    with pytest.raises(DeliveryError, match=r"cannot send resumed/1 to tba\.trajectories: .*partition 99"):
        send_numbers(producer, run_id, 1, partition=99)


def test_topics_are_created_once(broker: str) -> None:
    topic = Topic(f"tba.test.{uuid.uuid4().hex}", partitions=3)
    assert create_topics(broker, [topic]) == [topic.name]
    assert create_topics(broker, [topic]) == []


def test_a_topic_that_does_not_exist_yet_is_waited_for_and_not_made_up(
    broker: str, consume: Callable[..., Consumer], run_id: str, producer: Producer
) -> None:
    topic = Topic(f"tba.test.{uuid.uuid4().hex}", partitions=3)
    late = threading.Timer(0.2, create_topics, (broker, [topic]))
    late.start()
    consumer = consume(topic.name)
    late.join()
    send_numbers(producer, run_id, 3, topic=topic.name, partition=2)  # a broker's own choice might have no third
    assert len(take(consumer, 3)) == 3


def test_a_topic_that_never_comes_is_named_in_the_error(
    monkeypatch: pytest.MonkeyPatch, broker: str, run_id: str
) -> None:
    connect = kafka_client.connect

    def connect_and_lose_patience(*arguments: Any, **options: Any) -> Any:
        client = connect(*arguments, **options)  # which may take its time
        monkeypatch.setattr(kafka_client, "_PATIENCE_SECONDS", 0.5)
        return client

    monkeypatch.setattr(kafka_client, "connect", connect_and_lose_patience)
    with pytest.raises(BrokerError, match=r"no topic tba\.nowhere within"):
        Reader(broker, run_id, ["tba.nowhere"], {})
    admin = KafkaAdminClient(bootstrap_servers=broker)
    assert "tba.nowhere" not in admin.list_topics()
    admin.close()


def test_a_broker_that_never_comes_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch, run_id: str) -> None:
    monkeypatch.setattr("tba_common.kafka_client._PATIENCE_SECONDS", 0.3)
    with pytest.raises(BrokerError, match=r"no Kafka broker answered at 127\.0\.0\.1:9 within"):
        Producer("127.0.0.1:9", run_id)
