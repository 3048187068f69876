"""`tba dlq`, `grade`, `rescore` and `tasks seed`: what is sent, what is printed, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tba_cli import cli
from tests.cli.fake_api import FakeApi, Reply, listing, problem

Tba = Callable[..., tuple[object, str, str]]


def letter(number: int, **fields: Any) -> dict[str, Any]:
    found = {"dead_letter_id": number, "service": "tba-reward-verifier", "reason": "bad \x1b[2J", "topic": "t"}
    rest = {"task": "addition", "purpose": "train", "issue_id": 1, "replay": "none", "replay_fault": None}
    return {**found, **rest, "created_at": "2026-01-02T03:04:05Z", **fields}


RESCORE = {"rescore_id": 5, "task": "addition", "state": "running", "total": 2, "rescored": 1, "failed": 0}
RESCORE |= {"changed": 1, "mean_old_reward": 0.0, "mean_new_reward": 1.0}


@pytest.fixture
def tba(api: FakeApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tba:
    """Runs `tba` with arguments against the fake API."""
    monkeypatch.setenv("TBA_URL", api.url)
    monkeypatch.delenv("TBA_API_KEY", raising=False)

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["tba", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code, *capsys.readouterr())

    return run


def test_dead_letters_are_listed_with_their_reasons_made_visible(tba: Tba, api: FakeApi) -> None:
    api.on("GET /v1/dead-letters", Reply(listing(letter(7))))
    code, out, _ = tba("dlq", "list", "--service", "tba-reward-verifier")
    assert code == 0
    assert "\\x1b[2J" in out
    assert "\x1b[2J" not in out
    assert api.asked[0].query == {"service": "tba-reward-verifier", "limit": "50"}


def test_one_dead_letter_is_shown_with_its_body(tba: Tba, api: FakeApi) -> None:
    detail = {"schema_header": "prompt/1", "size_bytes": 3, "message": None, "body": "\\xff", "undecodable": "broken"}
    api.on("GET /v1/dead-letters/7", Reply(letter(7, **detail)))
    code, out, _ = tba("dlq", "show", "7")
    assert code == 0
    assert "prompt/1, 3 bytes" in out
    assert "\\xff" in out


def test_those_that_fit_are_replayed_and_those_that_were_are_not(tba: Tba, api: FakeApi) -> None:
    api.on("GET /v1/dead-letters", Reply(listing(letter(7), letter(6, replay="sent"), letter(5))))
    api.on("POST /v1/dead-letters/7/replay", Reply(letter(7, replay="asked"), 202))
    api.on("POST /v1/dead-letters/5/replay", problem(409, ("path:dead_letter_id", "a whole body", "5")))
    code, out, err = tba("dlq", "replay", "--task", "addition")
    assert (code, "1 replayed" in out, "5: " in err) == (1, True, True)


def test_all_that_fit_are_replayed_however_many_pages_they_fill(tba: Tba, api: FakeApi) -> None:
    api.on(
        "GET /v1/dead-letters",
        listing(letter(9, replay="sent"), letter(8), next_after="8"),
        listing(letter(7), letter(6, replay="refused")),
    )
    for number in (8, 7, 6):
        api.on(f"POST /v1/dead-letters/{number}/replay", Reply(letter(number, replay="asked"), 202))
    code, out, _ = tba("dlq", "replay", "--service", "tba-reward-verifier")
    assert (code, out) == (0, "3 replayed\n")
    assert [asked.query.get("after") for asked in api.asked[:2]] == [None, "8"]


@pytest.mark.parametrize("command", [("grade", "x", "--prompt", "p", "--task", "addition"), ("dlq", "drop", "7")])
def test_a_refusal_that_quotes_a_model_cannot_command_the_terminal(
    tba: Tba, api: FakeApi, command: tuple[str, ...]
) -> None:
    refused = problem(424, ("", "a score", "raised ValueError: \x1b[2J\u202e\x9b31m"), code="grading-failed")
    api.on("POST /v1/graders:run", refused)
    api.on("DELETE /v1/dead-letters/7", refused)
    _, _, err = tba(*command)
    assert "\\x1b[2J\\u202e\\x9b31m" in err
    assert not {"\x1b", "\u202e", "\x9b"} & set(err)


def test_nothing_is_dropped_by_accident(tba: Tba, api: FakeApi) -> None:
    assert tba("dlq", "drop")[0] == 2
    assert api.asked == []


def test_a_completion_is_graded_with_each_scorer_s_value(tba: Tba, api: FakeApi) -> None:
    score = {"scorer": "verifier", "version": "1", "value": 0.25, "seconds": 0.1, "attempts": 1, "details": {"win": 1}}
    grades = [{"reward": 0.5, "scores": [score], "responses": []}]
    api.on("POST /v1/graders:run", Reply({"grading_id": 1, "state": "done", "completions": grades}))
    code, out, _ = tba("grade", "19", "--prompt", "12+07=", "--reference", "19", "--task", "addition")
    assert (code, "0.500" in out, "0.250 (win 1)" in out) == (0, True, True)
    prompt = {"text": "12+07=", "reference": "19"}
    assert api.asked[0].body == {"task": "addition", "prompt": prompt, "completions": ["19"]}


def test_a_grading_needs_one_reward(tba: Tba, api: FakeApi) -> None:
    assert tba("grade", "19", "--prompt", "12+07=")[0] == 2
    assert api.asked == []


def test_a_re_scoring_is_asked_for_with_a_reward_from_a_file(
    tba: Tba, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tba_cli.grade_commands._PAUSE_SECONDS", 0.0)
    (tmp_path / "reward.json").write_text('[{"scorer": "verifier"}]')
    api.on("POST /v1/tasks/addition/rescore", Reply(RESCORE, 202))
    api.on("GET /v1/rescores/5", Reply({**RESCORE, "state": "done", "rescored": 2}))
    reward = ("--reward", str(tmp_path / "reward.json"))
    code, out, _ = tba("rescore", "addition", *reward, "--limit", "2", "--requested-by", "ada")
    assert (code, "2 of 2 scored again" in out) == (0, True)
    assert api.asked[0].body == {"reward": [{"scorer": "verifier"}], "limit": 2, "requested_by": "ada"}


def test_what_kept_its_old_reward_is_a_failure(tba: Tba, api: FakeApi) -> None:
    api.on("POST /v1/tasks/addition/rescore", Reply({**RESCORE, "state": "done", "failed": 1}, 202))
    code, _, err = tba("rescore", "addition")
    assert (code, "tba dlq list" in err) == (1, True)


def test_known_answers_are_given_from_jsonl(tba: Tba, api: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "attacks.jsonl"
    file.write_text('{"attack": "one", "prompt": "p"}\n{"attack": "two"}\n')
    api.on("POST /v1/tasks/attacks/seeds", Reply({"task": "attacks", "accepted": 2}, 202))
    code, out, _ = tba("tasks", "seed", "attacks", str(file), "--answer-field", "attack")
    assert (code, "2 answers" in out) == (0, True)
    assert api.asked[0].body == [{"answer": "one", "prompt": "p"}, {"answer": "two"}]
    file.write_text('{"attack": 5}\n')
    assert tba("tasks", "seed", "attacks", str(file), "--answer-field", "attack")[0] == 2
