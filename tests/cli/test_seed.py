"""A fresh deployment is seeded once, however often the Job runs; the check passes once a step was trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner

from tba_cli import seed
from tba_cli.errors import TbaError
from tba_cli.presets.preset import Start
from tests.cli.fake_api import STATUS, TASK, FakeApi, Reply, listing

RUN: Final = CliRunner()


def ask(api: FakeApi, *arguments: str) -> str:
    """The output of a command that must not fail."""
    done = RUN.invoke(seed.app, [*arguments, "--url", api.url], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def posted(api: FakeApi) -> list[dict[str, Any]]:
    return [asked.body for asked in api.asked if (asked.method, asked.path) == ("POST", "/v1/tasks")]


def with_steps(steps: int) -> dict[str, Any]:
    task: dict[str, Any] = copy.deepcopy(TASK)
    task["progress"]["task_steps"] = steps
    return task


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed, "_LOOK_SECONDS", 0.01)


def test_the_task_is_posted_once_the_api_answers(api: FakeApi) -> None:
    api.on("GET /v1/status", Reply({"title": "later", "status": 503}, 503), STATUS)
    api.on("GET /v1/tasks", listing())
    api.on("POST /v1/tasks", TASK)
    ask(api, "task")
    (body,) = posted(api)
    assert (body["name"], len(body["prompts"])) == ("addition", 10_000)


def test_a_task_that_is_there_is_left_alone(api: FakeApi) -> None:
    api.on("GET /v1/status", STATUS)
    api.on("GET /v1/tasks", listing(TASK))
    assert "already" in ask(api, "task")
    assert posted(api) == []


def test_the_check_waits_for_a_step_and_takes_its_task_away(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uuid.uuid4", lambda: Hex())
    api.on("GET /v1/status", STATUS)
    api.on("POST /v1/tasks", TASK)
    api.on("GET /v1/tasks/check-00000000", with_steps(0), with_steps(1))
    api.on("DELETE /v1/tasks/check-00000000", Reply(None, 204))
    assert "trained on" in ask(api, "check")
    assert [a.method for a in api.asked if a.path.endswith("check-00000000")] == ["GET", "GET", "DELETE"]


def test_the_check_fails_when_nothing_is_trained_in_time(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uuid.uuid4", lambda: Hex())
    api.on("GET /v1/status", STATUS)
    api.on("POST /v1/tasks", TASK)
    api.on("GET /v1/tasks/check-00000000", with_steps(0))
    api.on("DELETE /v1/tasks/check-00000000", Reply(None, 204))
    with pytest.raises(TbaError, match="not trained within 0 s"):
        ask(api, "check", "--within", "0")
    assert api.asked[-1].method == "DELETE"


def test_a_policy_appears_whole_and_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(start: Start) -> Path:
        (start.directory / "start").mkdir()
        (start.directory / "start/model.safetensors").write_text("weights")
        return start.directory / "start"

    monkeypatch.setattr(seed, "supervised_start", make)
    place = tmp_path / "checkpoints/policy"
    for said in ("", "already"):
        assert said in RUN.invoke(seed.app, ["policy", str(place)], catch_exceptions=False).output
    assert [path.name for path in place.iterdir()] == ["model.safetensors"]
    assert [path.name for path in place.parent.iterdir()] == ["policy"]


class Hex(str):
    """In the place of a random id."""

    __slots__ = ()
    hex = "0" * 32
