"""Watching: every step once, an end when it is asked for, and patience with an API that is away."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from tba_cli.client import Client
from tba_cli.errors import Unavailable
from tba_cli.watch import Look, looks, print_lines, show_live, write_json
from tests.cli.fake_api import STATUS, FakeApi, Reply, listing, step


def status(at_step: int) -> dict[str, object]:
    return {**STATUS, "step": at_step}


def test_each_look_has_the_steps_since_the_one_before_and_the_last_reaches_the_step(api: FakeApi) -> None:
    api.on("GET /v1/status", status(2), status(3))
    api.on("GET /v1/steps", listing(step(1), step(2)), listing(step(3)))
    pauses: list[float] = []
    with Client(api.url) as client:
        found = list(looks(client, every_seconds=2.0, until_step=3, sleep=pauses.append))
    assert [[s.step for s in look.steps] for look in found if isinstance(look, Look)] == [[1, 2], [3]]
    assert [asked.query["after"] for asked in api.asked if asked.path == "/v1/steps"] == ["-1", "2"]
    assert pauses == [2.0]


def test_an_api_that_is_away_is_looked_for_again(api: FakeApi) -> None:
    api.on("GET /v1/status", Reply(hang_up=True), status(3))
    api.on("GET /v1/steps", listing(step(3)))
    with Client(api.url, attempts=1) as client:
        first, second = looks(client, every_seconds=0, until_step=3, sleep=lambda _: None)
    assert isinstance(first, Unavailable)
    assert isinstance(second, Look)


def one_look(api: FakeApi) -> None:
    api.on("GET /v1/status", status(2))
    api.on("GET /v1/steps", listing(step(1), step(2)))
    api.on("GET /v1/evaluations", listing())
    api.on("GET /v1/trajectories", listing())


def test_lines_are_one_a_step(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    one_look(api)
    with Client(api.url) as client:
        print_lines(looks(client, every_seconds=0, until_step=2), Console())
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["step 1", "step 2"]


def test_what_is_awaited_is_told_once(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.on("GET /v1/status", status(0), status(0), status(1))
    api.on("GET /v1/steps", listing(), listing(), listing(step(1)))
    with Client(api.url) as client:
        print_lines(looks(client, every_seconds=0, until_step=1), Console())
    first, second = capsys.readouterr().out.splitlines()
    assert first == STATUS["waiting_for"]
    assert second.startswith("step 1")


def test_what_is_awaited_may_quote_a_model_and_commands_no_terminal(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.on("GET /v1/status", {**status(0), "waiting_for": "because: \x1b[2J"}, status(1))
    api.on("GET /v1/steps", listing(), listing(step(1)))
    with Client(api.url) as client:
        print_lines(looks(client, every_seconds=0, until_step=1), Console())
    assert capsys.readouterr().out.splitlines()[0] == "because: \\x1b[2J"


def test_steps_that_a_learner_takes_again_are_seen_again(api: FakeApi) -> None:
    api.on("GET /v1/status", status(9), status(4), status(5))
    api.on("GET /v1/steps", listing(step(9)), listing(), listing(step(5)))
    with Client(api.url) as client:
        found = looks(client, every_seconds=0, until_step=None, sleep=lambda _: None)
        for _ in range(3):
            next(found)
    assert [asked.query["after"] for asked in api.asked if asked.path == "/v1/steps"] == ["-1", "9", "4"]


def test_json_is_one_object_a_look(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    one_look(api)
    with Client(api.url) as client:
        write_json(looks(client, every_seconds=0, until_step=2))
    (line,) = capsys.readouterr().out.splitlines()
    assert [found["step"] for found in json.loads(line)["steps"]] == [1, 2]
    assert json.loads(line)["status"]["step"] == 2


def test_the_live_page_waits_for_an_api_that_goes_away_between_two_questions(api: FakeApi) -> None:
    one_look(api)
    api.on("GET /v1/status", status(1), status(2))
    api.on("GET /v1/trajectories", Reply(hang_up=True), listing())
    console = Console(force_terminal=True, width=200)
    with Client(api.url, attempts=1) as client, console.capture() as page:
        show_live(looks(client, every_seconds=0, until_step=2), client, console)
    assert "does not answer" in page.get()
    assert "step 2  version 3" in page.get()


def test_the_live_page_shows_the_run_and_its_last_step(api: FakeApi) -> None:
    one_look(api)
    console = Console(force_terminal=True, width=200)
    with Client(api.url) as client, console.capture() as page:
        show_live(looks(client, every_seconds=0, until_step=2), client, console)
    assert "step 2  version 3" in page.get()
    assert "policy version" in page.get()
