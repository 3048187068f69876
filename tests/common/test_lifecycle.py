"""A process says the truth about itself over HTTP, and a signal stops it between two turns."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Final, cast

import pytest

from tba_common import lifecycle
from tba_common.lifecycle import Lifecycle, configure_logging
from tba_common.settings import ServiceSettings
from tests.cli.local.processes import wait_until
from tests.loopbacks import loopbacks, reached

pytestmark = pytest.mark.integration

SECONDS: Final = 60.0  # for what takes none


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Give the test process its own signal handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def life() -> Iterator[Lifecycle]:
    with Lifecycle("tba-learner", ServiceSettings(health_address="127.0.0.1:0")) as life:
        yield life


def get(life: Lifecycle, path: str) -> tuple[int, str]:
    assert life.address is not None
    try:
        with cast(HTTPResponse, urllib.request.urlopen(f"http://{life.address}{path}", timeout=SECONDS)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_process_is_not_ready_until_it_says_so_and_says_why(life: Lifecycle) -> None:
    assert get(life, "/readyz") == (503, "starting\n")
    life.ready(False, "waiting for weights")
    assert get(life, "/readyz") == (503, "waiting for weights\n")
    life.ready(True)
    assert get(life, "/readyz") == (200, "ready\n")


def test_a_loop_that_stopped_turning_is_not_alive(life: Lifecycle, monkeypatch: pytest.MonkeyPatch) -> None:
    life.beat()
    assert get(life, "/healthz")[0] == 200
    monkeypatch.setattr(lifecycle, "MAX_HEARTBEAT_AGE_SECONDS", -1.0)
    status, sentence = get(life, "/healthz")
    assert status == 503
    assert "expected within" in sentence


def test_a_process_exports_its_own_metrics_and_no_other_service_s(life: Lifecycle) -> None:
    status, text = get(life, "/metrics")
    assert status == 200
    assert "# HELP tba_learner_step_seconds Time of one optimiser step" in text
    assert "process_open_fds" in text
    assert "tba_generator" not in text


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::]:0"])
def test_a_health_address_may_be_every_one(address: str) -> None:
    with Lifecycle("tba-learner", ServiceSettings(health_address=address)) as life:
        port = int(str(life.address).rpartition(":")[2])
        assert reached(port) == (loopbacks() if address == "[::]:0" else ["127.0.0.1"])
        assert get(life, "/healthz")[0] == 200


def test_an_unknown_path_says_what_exists(life: Lifecycle) -> None:
    assert get(life, "/") == (404, "expected /healthz, /readyz or /metrics\n")


def test_sigterm_sets_stop(life: Lifecycle) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert life.stop.wait(SECONDS)


def test_a_json_log_line_holds_its_fields(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    logging.getLogger("tba").info("weights loaded", extra={"policy_version": 42})
    event = json.loads(capfd.readouterr().err)
    assert (event["event"], event["policy_version"], event["level"]) == ("weights loaded", 42, "INFO")


def test_a_text_log_line_holds_its_fields(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("text")
    logging.getLogger("tba").info("weights loaded", extra={"policy_version": 42})
    assert "INFO tba: weights loaded policy_version=42" in capfd.readouterr().err


def test_what_a_model_wrote_cannot_pass_for_a_log_line(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("text")
    logging.getLogger("tba").warning(
        "dead letter", extra={"reason": "got 'a\nINFO tba: all is well\x1b[2K'", "of": "né"}
    )
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert "\x1b" not in line
    assert line.endswith("of=né\n")


def test_requests_of_an_http_client_are_no_events(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("text")
    logging.getLogger("httpx").info("HTTP Request: POST https://judge.example/v1/chat/completions")
    logging.getLogger("httpx").warning("a fault")
    assert capfd.readouterr().err.count("httpx") == 1


def test_a_prober_that_leaves_before_its_answer_is_no_event(
    life: Lifecycle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked, left = threading.Event(), threading.Event()
    answering: list[threading.Thread] = []

    def readiness() -> tuple[bool, str]:
        answering.append(threading.current_thread())
        asked.set()
        return left.wait(SECONDS), "ready"

    monkeypatch.setattr(life, "readiness", readiness)
    host, port = str(life.address).split(":")
    with socket.create_connection((host, int(port))) as prober:
        prober.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
        prober.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert asked.wait(SECONDS)
    left.set()
    answering[0].join(SECONDS)
    assert not answering[0].is_alive()
    assert capfd.readouterr().err == ""


def test_a_process_that_stopped_in_time_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(Lifecycle, "_end", lambda self: ended.set())
    with Lifecycle("tba-learner", ServiceSettings(grace_seconds=SECONDS)) as life:
        assert life.seconds_left == math.inf
        os.kill(os.getpid(), signal.SIGTERM)
        assert life.stop.wait(SECONDS)
        assert life.seconds_left <= SECONDS
        wait_until(lambda: life._watchdog.ident is not None)
    life._watchdog.join(SECONDS / 2)
    assert not life._watchdog.is_alive()
    assert not ended.is_set()


def test_signals_mean_again_what_they_meant_when_it_is_over() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    with Lifecycle("tba-learner", ServiceSettings()):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM]


STUCK = """
import time
from tba_common import lifecycle
from tba_common.settings import ServiceSettings
with lifecycle.Lifecycle("tba-learner", ServiceSettings(grace_seconds=0.2)) as life:
    print("up", flush=True)
    time.sleep(60)
"""


def test_a_process_that_cannot_stop_ends_when_its_grace_is_over() -> None:
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.terminate()
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert b"not stopped in time" in errors
