"""The embedded broker: every topic is there, a restart forgets all, and it lives as long as its process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tba_cli.local import kafka_broker, state_file
from tba_cli.local.ports import LOOPBACK, answers, free_ports
from tba_common.kafka import create_topics, wait_for_topics
from tba_common.topics import topics_for
from tests.cli.local.processes import wait_until, wrapper

pytestmark = pytest.mark.integration


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_new_broker_has_every_topic() -> None:
    with kafka_broker.running() as servers:
        assert create_topics(servers, topics_for(["verifier"])) == []


def test_the_same_port_serves_again_after_a_restart() -> None:
    port = free_ports(1)[0]
    for _ in range(2):
        with kafka_broker.running(port) as servers:
            assert servers == f"{LOOPBACK}:{port}"
            assert create_topics(servers, topics_for(["verifier"])) == []
        assert not answers(port)


def test_a_port_that_is_taken_is_an_error_that_names_it() -> None:
    with kafka_broker.running() as servers:
        port = int(servers.rpartition(":")[2])
        with pytest.raises(kafka_broker.BrokerError, match=str(port)):
            kafka_broker.start(kafka_broker.Listener(port))


def test_the_process_ends_well_on_sigterm() -> None:
    port = free_ports(1)[0]
    with wrapper("tba_cli.local.kafka_broker", "--port", str(port)) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not answers(port)


def test_the_process_ends_with_1_when_the_broker_does() -> None:
    with wrapper("tba_cli.local.kafka_broker") as process:
        (broker,) = children(process.pid)
        os.kill(broker, signal.SIGKILL)
        assert process.wait(60) == 1


def test_the_broker_ends_when_its_process_is_killed() -> None:
    with wrapper("tba_cli.local.kafka_broker") as process:
        (broker,) = children(process.pid)
        process.kill()
        wait_until(lambda: state_file.birth(broker) is None)


def test_clients_find_a_broker_that_listens_everywhere_by_the_name_it_advertises() -> None:
    broker = kafka_broker.start(kafka_broker.Listener(address="0.0.0.0", advertised_host="localhost"))
    try:
        wait_for_topics(broker.servers.replace(LOOPBACK, "localhost"), topics_for(["verifier"]))
    finally:
        broker.stop()
