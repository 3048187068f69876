from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tba_cli.local import postgres
from tba_cli.local.ports import free_ports
from tests.integration.api_client import TASK, migrated_database, serving
from tests.logins import as_role, make_logins

pytestmark = pytest.mark.integration
COMMAND = [sys.executable, "-m", "services.buffer", "api"]
SECONDS = 60.0


@pytest.fixture(scope="module")
def url(postgres_url: str) -> str:
    return migrated_database(postgres_url)


@contextmanager
def process(**settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """The API as a process of its own; it is gone when the block ends."""
    running = subprocess.Popen(COMMAND, env=os.environ | settings, stderr=subprocess.PIPE)
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def wait_until_it_answers(base: str) -> None:
    """Connect with growing pauses, a minute in all."""
    with httpx.Client(transport=httpx.HTTPTransport(retries=8), timeout=SECONDS) as client:
        assert client.get(f"{base}/healthz").status_code == 200


def test_it_refuses_to_be_reached_from_elsewhere_without_a_key() -> None:
    result = subprocess.run(
        COMMAND, env=os.environ | {"TBA_API_ADDRESS": "0.0.0.0:0"}, capture_output=True, text=True, timeout=SECONDS
    )
    assert result.returncode != 0
    assert "can be reached from other machines and TBA_API_KEY is not set" in result.stderr
    assert "Traceback" not in result.stderr


def test_it_serves_and_ends_in_order_on_sigterm(url: str, run_id: str) -> None:
    port = free_ports(1)[0]
    base = f"http://127.0.0.1:{port}"
    database = as_role(url, "tba_api")
    settings = {"TBA_DATABASE_URL": database, "TBA_RUN_ID": run_id, "TBA_API_ADDRESS": f"127.0.0.1:{port}"}
    with process(**settings) as running:
        wait_until_it_answers(base)
        with httpx.Client(base_url=base, timeout=SECONDS) as client:
            assert client.post("/v1/tasks", json=TASK).status_code == 201
            assert client.get("/v1/tasks/addition").json()["name"] == "addition"
            assert "server" not in client.get("/").headers
        running.send_signal(signal.SIGTERM)
        assert running.wait(SECONDS) == 0


def test_a_client_that_sends_without_end_is_cut_off(url: str, run_id: str) -> None:
    port = free_ports(1)[0]
    database = as_role(url, "tba_api")
    settings = {"TBA_DATABASE_URL": database, "TBA_API_ADDRESS": f"127.0.0.1:{port}", "TBA_MAX_BODY_BYTES": "4096"}
    with process(**settings):
        wait_until_it_answers(f"http://127.0.0.1:{port}")
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
            connection.sendall(
                b"POST /v1/tasks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n" + 5 * (b"400\r\n" + b" " * 1024 + b"\r\n")
            )
            answer = b""
            while chunk := connection.recv(65_536):  # until the server closes
                answer += chunk
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"got":"more than 4096 bytes"' in answer


def test_it_lives_through_an_outage_of_the_database(tmp_path: Path, run_id: str) -> None:
    server = postgres.start(tmp_path / "postgres")
    make_logins(server.url)
    port = int(server.url.rpartition(":")[2].partition("/")[0])
    with serving(migrated_database(server.url), run_id) as client:
        assert client.post("/v1/tasks", json=TASK).status_code == 201
        server.stop()
        for _ in range(3):
            down = client.get("/v1/tasks/addition")
            assert down.status_code == 503
            assert down.headers["retry-after"] == "5"
        assert client.get("/healthz").status_code == 200
        server = postgres.start(tmp_path / "postgres", port)
        try:
            assert client.get("/v1/tasks/addition").json()["state"] == "active"
        finally:
            server.stop()
