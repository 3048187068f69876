"""`tba autoscaler` against an API over real HTTP, and the bounds of `tba up --autoscale`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tba_cli import cli
from tba_cli.errors import BadInput
from tba_cli.options import bounds
from tests.cli.fake_api import FakeApi, Reply

DECISION: dict[str, Any] = {
    "desired": 3,
    "replicas": 2,
    "ready": 2,
    "reason": "starving",
    "sentence": "the learner waits 20% of the time; 3 needed",
    "applied": False,
    "created_at": "2026-01-02T03:04:05Z",
    "decided_at": "2026-01-02T03:05:05Z",
}


def run(api: FakeApi, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setenv("TBA_URL", api.url)
    monkeypatch.setattr(sys, "argv", ["tba", "autoscaler", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_show_tells_the_signals_the_decision_and_its_reason(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: dict[str, Any] = {"signals": None, "override": None, "decision": DECISION, "decisions": [DECISION]}
    api.on("GET /v1/autoscaler", shown)
    monkeypatch.setenv("COLUMNS", "200")
    assert run(api, monkeypatch, "show") == 0
    out = capsys.readouterr().out
    assert "none: the buffer has not said anything yet" in out
    assert "starving (not applied)" in out
    assert DECISION["sentence"] in out


def test_override_sends_the_number_and_when_it_ends(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.on("POST /v1/autoscaler/override", {})
    assert run(api, monkeypatch, "override", "5", "--for", "30") == 0
    (asked,) = api.asked
    until = datetime.fromisoformat(asked.body["until"])
    assert asked.body["replicas"] == 5
    assert abs(until - datetime.now(UTC) - timedelta(minutes=30)) < timedelta(minutes=1)


def test_clear_takes_it_back(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.on("DELETE /v1/autoscaler/override", Reply(status=204))
    assert run(api, monkeypatch, "clear") == 0
    assert [asked.method for asked in api.asked] == ["DELETE"]


def test_bounds_are_two_numbers_in_order() -> None:
    assert bounds("1:4") == (1, 4)
    assert bounds("0:1") == (0, 1)
    for wrong in ("4", "4:1", "a:b", "0:0", ":4", "-1:4"):
        with pytest.raises(BadInput, match="expected MIN:MAX such as 1:4, got"):
            bounds(wrong)
