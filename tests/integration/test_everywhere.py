"""Told to listen everywhere, a server is reached over IPv6 and IPv4: a cluster may have only one of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tba_cli.local import kafka_broker, postgres
from tba_cli.local.kafka_broker import Listener
from tba_cli.local.ports import free_ports
from tba_common.listening import EVERYWHERE
from tests.cli.local.processes import wait_until
from tests.loopbacks import loopbacks, reached

pytestmark = pytest.mark.integration


def test_a_broker_everywhere() -> None:
    broker = kafka_broker.start(Listener(address=EVERYWHERE))
    try:
        assert reached(int(broker.servers.rpartition(":")[2])) == loopbacks()
    finally:
        broker.stop()


def test_a_broker_everywhere_where_the_kernel_has_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.has_dualstack_ipv6", lambda: False)
    broker = kafka_broker.start(Listener(address=EVERYWHERE))
    try:
        assert reached(int(broker.servers.rpartition(":")[2])) == ["127.0.0.1"]
    finally:
        broker.stop()


def test_a_database_server_everywhere(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    server = postgres.start(tmp_path / "postgres", port, address=EVERYWHERE)
    try:
        assert reached(port) == loopbacks()
    finally:
        server.stop()


@pytest.mark.parametrize(("address", "expected"), [("[::]", loopbacks()), ("127.0.0.1", ["127.0.0.1"])])
def test_the_api_and_its_health_where_they_are_told(address: str, expected: list[str]) -> None:
    ports = free_ports(2)
    env = {
        "TBA_API_KEY": "key",
        "TBA_API_ADDRESS": f"{address}:{ports[0]}",
        "TBA_HEALTH_ADDRESS": f"{address}:{ports[1]}",
    }
    process = subprocess.Popen([sys.executable, "-m", "services.buffer", "api"], env=env)
    try:
        wait_until(lambda: process.poll() is not None or all(map(reached, ports)), seconds=60)
        assert [reached(port) for port in ports] == [expected] * 2
    finally:
        process.kill()
        process.wait()
