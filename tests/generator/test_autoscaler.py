"""The loop of the autoscaler against an API over HTTP: it looks, decides, acts, says so, and holds when it cannot."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from services.generator.autoscaler import Autoscaler, NotAllowed, Unreachable
from services.generator.scaling_api import ScalingApi
from services.generator.scaling_values import Decision, Fleet, Limits
from tba_common.metrics import exposition
from tests.cli.fake_api import FakeApi, Reply, serve
from tests.generator.test_scaling import CALM

STARVING = {**asdict(CALM), "wait_ratio": 0.5}
SEES, SAYS = "GET /v1/autoscaler", "POST /v1/autoscaler/decisions"


class Generators:
    """A fleet in memory."""

    def __init__(self, replicas: int) -> None:
        self.replicas, self.leads, self.refusal = replicas, True, ""

    def lead(self) -> bool:
        return self.leads

    def fleet(self) -> Fleet:
        if self.replicas < 0:
            raise Unreachable("nobody there")
        return Fleet(replicas=self.replicas, ready=self.replicas)

    def scale(self, decision: Decision, fleet: Fleet) -> None:
        if self.refusal:
            raise NotAllowed(self.refusal)
        self.replicas = decision.desired

    def close(self) -> None:
        return


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    monkeypatch.setattr("services.generator.scaling_api._TIMEOUT_SECONDS", 60.0)  # the machine may stall
    with serve() as api:
        api.on(SEES, {"signals": STARVING, "override": None, "decision": None, "decisions": []})
        api.on(SAYS, Reply({}, 201))
        yield api


@pytest.fixture
def generators() -> Generators:
    return Generators(2)


def autoscaler(api: FakeApi, generators: Generators, *, key: str | None = None, dry_run: bool = False) -> Autoscaler:
    times = iter(range(0, 100_000, 1_000))
    door = ScalingApi(api.url, key, "one")
    return Autoscaler(door, generators, Limits(), dry_run=dry_run, clock=lambda: float(next(times)))


def said(api: FakeApi) -> list[dict[str, object]]:
    return [asked.body for asked in api.asked if asked.method == "POST"]


def test_it_scales_for_a_learner_that_waits_and_hands_in_why(api: FakeApi, generators: Generators) -> None:
    loop = autoscaler(api, generators, key="sesame")
    assert loop.step() == ""  # what it sees first has not settled
    assert loop.step() == ""
    assert generators.replicas == 3
    first, second = said(api)
    assert (first["reason"], first["desired"], first["applied"]) == ("settling", 2, True)
    assert (second["reason"], second["desired"], second["replicas"]) == ("demand", 3, 2)
    assert second["signals"] == STARVING
    assert second["decided_by"] == "one"
    assert {asked.headers["Authorization"] for asked in api.asked} == {"Bearer sesame"}


def test_a_dry_run_says_what_it_would_do_and_does_not(api: FakeApi, generators: Generators) -> None:
    loop = autoscaler(api, generators, dry_run=True)
    loop.step()
    loop.step()
    assert generators.replicas == 2
    assert (said(api)[-1]["desired"], said(api)[-1]["applied"]) == (3, False)


def test_a_person_s_number_is_followed_at_once(api: FakeApi, generators: Generators) -> None:
    api.on(SEES, {"signals": None, "override": {"replicas": 6, "until": "2199-01-01T00:00:00Z"}})
    autoscaler(api, generators).step()
    assert generators.replicas == 6


@pytest.mark.parametrize("answer", [Reply(hang_up=True), Reply({}, 503), Reply({"signals": {"tasks_active": 1}})])
def test_without_an_api_that_answers_nothing_changes(api: FakeApi, generators: Generators, answer: Reply) -> None:
    api.on(SEES, answer)
    loop = autoscaler(api, generators)
    troubles = [loop.step() for _ in range(3)]
    assert all("/v1/autoscaler" in trouble for trouble in troubles)
    assert generators.replicas == 2
    assert {decision["reason"] for decision in said(api)} == {"no_signals"}


def test_a_fleet_that_is_not_ours_to_change_is_told_as_not_applied(api: FakeApi, generators: Generators) -> None:
    generators.refusal = "ScaledObject x targets Deployment y too"
    loop = autoscaler(api, generators)
    loop.step()
    assert loop.step() == generators.refusal
    assert (said(api)[-1]["desired"], said(api)[-1]["applied"]) == (3, False)


def test_a_fleet_that_does_not_answer_is_no_crash(api: FakeApi) -> None:
    assert autoscaler(api, Generators(-1)).step() == "nobody there"
    assert said(api) == []


def test_who_does_not_lead_decides_nothing_and_forgets_what_it_knew(api: FakeApi, generators: Generators) -> None:
    loop = autoscaler(api, generators)
    loop.step()
    generators.leads = False
    assert loop.step() == ""
    generators.leads = True
    loop.step()
    assert [decision["reason"] for decision in said(api)] == ["settling", "settling"]
    assert generators.replicas == 2


def desired() -> dict[str, float]:
    """What a scrape finds, by reason."""
    found = re.findall(r'^tba_autoscaler_desired_replicas\{reason="(\w+)"\} (\S+)$', exported(), re.MULTILINE)
    return {reason: float(value) for reason, value in found}


def exported() -> str:
    return exposition("tba-autoscaler").decode()


def test_the_number_is_exported_for_an_hpa_by_who_leads_and_sees(api: FakeApi, generators: Generators) -> None:
    loop = autoscaler(api, generators, dry_run=True)
    loop.step()
    assert desired() == {"settling": 2}
    loop.step()
    assert desired() == {"demand": 3}
    generators.leads = False
    loop.step()
    assert desired() == {}


def test_an_api_that_answers_something_else_than_http_changes_nothing(generators: Generators) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(2):
                with server.accept()[0] as asked:
                    asked.recv(4_096)
                    asked.sendall(b"welcome\r\n")

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        api = ScalingApi(f"http://127.0.0.1:{server.getsockname()[1]}", None, "one")
        assert "welcome" in Autoscaler(api, generators, Limits(), dry_run=False).step()
        answering.join(5)
    assert generators.replicas == 2
