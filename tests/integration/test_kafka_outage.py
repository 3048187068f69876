"""A broker that stalls, dies, and comes back empty: survived, or an exception, never silence."""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tba_cli.local import kafka_broker
from tba_cli.local.kafka_broker import Broker
from tba_common.kafka import Consumer, DeliveryError, Producer, Reader, Record
from tba_common.messages import Resumed
from tba_common.settings import WorkerSettings
from tba_common.topics import STEPS, TRAJECTORIES
from tests.cli.local.processes import wait_until

pytestmark = [
    pytest.mark.integration,
    # kafka-python 3.0.12 does not close the socket of a connection that was refused
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]

DEADLINE_SECONDS: Final = 60.0
RUN: Final = "outage"


@pytest.fixture
def own_broker() -> Iterator[list[Broker]]:
    """A broker to maltreat, alone in a list so that a test can put its successor in its place."""
    logging.disable()  # captured records would hold the errors, and these the sockets
    place = [kafka_broker.start()]
    yield place
    place[0].process.send_signal(signal.SIGCONT)
    place[0].stop()
    gc.collect()  # the sockets, while their warning is still ignored
    logging.disable(logging.NOTSET)


def freeze(broker: Broker) -> None:
    """Let the broker be silent, from the moment this returns: a thread that runs takes notice of the signal late."""
    broker.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: all(state_of(thread) == "T" for thread in Path(f"/proc/{broker.process.pid}/task").iterdir()))


def state_of(thread: Path) -> str:
    """As proc(5) has it: T is stopped."""
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]


def come_back_empty(place: list[Broker]) -> None:
    """Kill the broker and start another on its port."""
    place[0].stop()
    place[0] = kafka_broker.start(kafka_broker.Listener(int(place[0].servers.rpartition(":")[2])))


def number(value: int) -> Resumed:
    return Resumed(run_id=RUN, batch_id=value, step=0)


def number_of(record: Record) -> int:
    message = record.message()
    assert isinstance(message, Resumed)
    return message.batch_id


def consumer_of(servers: str, sharing: str) -> Consumer:
    settings = WorkerSettings.model_validate({"run_id": RUN, "kafka_servers": servers, "sharing": sharing})
    return Consumer(settings, TRAJECTORIES.name, "tba-test", window=100)


def take_until(consumer: Consumer, wanted: set[int]) -> set[int]:
    """Take and finish until all of `wanted` came; return what is missing at the deadline."""
    missing = set(wanted)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while missing and time.monotonic() < deadline:
        for record in consumer.take(100, 0.5):
            missing.discard(number_of(record))
            consumer.done(record)
    return missing


def read_until(reader: Reader, wanted: set[int]) -> set[int]:
    missing = set(wanted)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while missing and time.monotonic() < deadline:
        missing -= {number_of(record) for record in reader.poll(0.5)}
    return missing


def test_a_full_producer_blocks_until_the_broker_answers(own_broker: list[Broker]) -> None:
    broker = own_broker[0]
    delivered = threading.Event()
    with closing(Producer(broker.servers, RUN, max_in_flight=1)) as producer:
        producer.send(STEPS.name, number(0))
        producer.flush()
        freeze(broker)
        producer.send(STEPS.name, number(1), on_delivery=delivered.set)
        second = threading.Thread(target=producer.send, args=(STEPS.name, number(2)))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert not delivered.is_set()
        broker.process.send_signal(signal.SIGCONT)
        second.join(DEADLINE_SECONDS)
        assert not second.is_alive()
        assert delivered.wait(DEADLINE_SECONDS)  # the room was made just before


def test_what_is_not_acknowledged_in_time_is_a_delivery_error(own_broker: list[Broker]) -> None:
    broker = own_broker[0]
    with closing(Producer(broker.servers, RUN)) as producer:
        producer.send(STEPS.name, number(0))
        producer.flush()
        freeze(broker)
        producer.send(STEPS.name, number(1))
        with pytest.raises(DeliveryError, match=r"not acknowledged within 0\.3 s"):
            producer.flush(0.3)
        broker.process.send_signal(signal.SIGCONT)
        producer.flush()


def test_a_process_that_stops_gives_a_silent_broker_a_few_seconds_in_all_and_names_what_it_lost(
    own_broker: list[Broker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tba_common.kafka_producer.LAST_SECONDS", 0.5)
    broker, stop = own_broker[0], threading.Event()
    with closing(Producer(broker.servers, RUN, stop=stop, max_in_flight=2)) as producer:
        producer.send(STEPS.name, number(0))
        producer.flush()
        freeze(broker)
        producer.send(STEPS.name, number(1), key="one")
        producer.send(STEPS.name, number(2))
        threading.Timer(0.3, stop.set).start()  # while it waits
        lost = r"the process stops: resumed/1 to tba\.steps with key one, resumed/1 to tba\.steps$"
        with pytest.raises(DeliveryError, match=lost):
            producer.flush(600)
        with pytest.raises(DeliveryError, match="2 messages wait for their ack"):
            producer.send(STEPS.name, number(3))
        broker.process.send_signal(signal.SIGCONT)
        producer.flush()
        producer.send(STEPS.name, number(3))


def test_a_failed_send_is_reported_by_the_next_call(own_broker: list[Broker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tba_common.kafka_producer._REQUEST_SECONDS", 0.5)
    monkeypatch.setattr("tba_common.kafka_producer._DELIVERY_SECONDS", 1.0)
    delivered = threading.Event()
    with closing(Producer(own_broker[0].servers, RUN)) as producer:
        producer._client.partitions_for(STEPS.name)  # looked up by the first send, which may take longer than that
        own_broker[0].stop()
        producer.send(STEPS.name, number(1), on_delivery=delivered.set)
        with pytest.raises(DeliveryError, match=r"1 messages were not delivered, the first: resumed/1 to tba\.steps: "):
            producer.flush()
        assert not delivered.is_set()
        producer.flush()


@pytest.mark.parametrize("sharing", ["static", "group"])
def test_a_consumer_and_its_producer_survive_a_broker_that_forgot_everything(
    own_broker: list[Broker], monkeypatch: pytest.MonkeyPatch, sharing: str
) -> None:
    monkeypatch.setattr("tba_common.kafka_client._SESSION_SECONDS", 6.0)
    servers = own_broker[0].servers
    with closing(Producer(servers, RUN)) as producer, closing(consumer_of(servers, sharing)) as consumer:
        for value in range(20):
            producer.send(TRAJECTORIES.name, number(value), key=str(value))
        assert take_until(consumer, set(range(20))) == set()
        come_back_empty(own_broker)
        for value in range(100, 120):
            producer.send(TRAJECTORIES.name, number(value), key=str(value))
        assert take_until(consumer, set(range(100, 120))) == set()
        producer.flush()


def test_a_reader_reads_the_log_of_a_broker_that_forgot_everything_from_its_start(own_broker: list[Broker]) -> None:
    servers = own_broker[0].servers
    with closing(Producer(servers, RUN)) as producer, closing(Reader(servers, RUN, [STEPS.name], {})) as reader:
        for value in range(5):
            producer.send(STEPS.name, number(value))
        assert read_until(reader, set(range(5))) == set()
        come_back_empty(own_broker)
        for value in range(100, 120):  # longer at once than what was read of the old one
            producer.send(STEPS.name, number(value))
        producer.flush()
        assert read_until(reader, set(range(100, 120))) == set()


def test_a_consumer_that_starts_after_the_broker_forgot_starts_at_the_beginning(own_broker: list[Broker]) -> None:
    servers = own_broker[0].servers
    with closing(Producer(servers, RUN)) as producer:
        for value in range(20):
            producer.send(TRAJECTORIES.name, number(value), partition=0)
        with closing(consumer_of(servers, "static")) as consumer:
            assert take_until(consumer, set(range(20))) == set()
        come_back_empty(own_broker)
        for value in range(100, 103):
            producer.send(TRAJECTORIES.name, number(value), partition=0)
        producer.flush()
    with closing(consumer_of(servers, "static")) as consumer:
        assert take_until(consumer, set(range(100, 103))) == set()
