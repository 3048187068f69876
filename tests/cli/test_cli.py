"""The command line against an API over real HTTP: what is sent, what is printed, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tba_cli import cli, run_commands
from tba_cli.errors import BadInput
from tests.cli.fake_api import STATUS, TASK, FakeApi, Reply, listing, problem, step

pytestmark = pytest.mark.integration


class Ended(NamedTuple):
    code: object
    out: str
    err: str


Tba = Callable[..., Ended]


@pytest.fixture
def tba(api: FakeApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tba:
    """Runs `tba` with arguments against the fake API."""
    monkeypatch.setenv("TBA_URL", api.url)
    monkeypatch.delenv("TBA_API_KEY", raising=False)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["tba", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ended(ended.value.code, *capsys.readouterr())

    return run


def test_help_needs_no_heavy_library() -> None:
    heavy = {"torch", "transformers", "kafka", "httpx", "pydantic", "numpy", "matplotlib", "sqlalchemy"}
    code = f"import sys, tba_cli.cli; print(sorted({heavy!r} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_help_lists_the_commands_and_the_exit_codes(tba: Tba) -> None:
    ended = tba("--help")
    assert ended.code == 0
    assert all(command in ended.out for command in ("up", "down", "status", "watch", "demo", "tasks"))
    assert "Exit codes" in ended.out


def test_jsonl_is_posted_as_a_task(tba: Tba, api: FakeApi, tmp_path: Path) -> None:
    api.on("POST /v1/tasks", Reply(TASK, 201))
    file = tmp_path / "sums.jsonl"
    file.write_text('{"question": "12+07=", "answer": 19}\n{"question": "1+1=", "answer": 2}\n')
    fields = ("--text-field", "question", "--reference-field", "answer")
    ended = tba("tasks", "post", str(file), "--name", "addition", *fields, "--match", "last_number", "--beta", "0.1")
    assert (ended.code, "addition" in ended.out) == (0, True)
    assert api.asked[0].body == {
        "name": "addition",
        "reward": [{"scorer": "verifier", "options": {"match": "last_number"}}],
        "prompt_format": "text",
        "sampling": {},
        "target": {"beta": 0.1},
        "prompts": [{"text": "12+07=", "reference": "19"}, {"text": "1+1=", "reference": "2"}],
    }


def test_a_document_is_posted_as_it_is(tba: Tba, api: FakeApi, tmp_path: Path) -> None:
    api.on("POST /v1/tasks", Reply(TASK, 201))
    document = {"name": "addition", "reward": [{"scorer": "verifier"}], "prompts": [{"text": "1+1="}]}
    file = tmp_path / "task.json"
    file.write_text(json.dumps(document, indent=2))
    assert tba("tasks", "post", str(file)).code == 0
    assert api.asked[0].body == document


def test_json_output_is_the_answer_and_nothing_else(tba: Tba, api: FakeApi) -> None:
    api.on("GET /v1/tasks", listing(TASK))
    api.on("GET /v1/status", STATUS)
    (task,) = json.loads(tba("tasks", "list", "-o", "json").out)
    assert (task["name"], task["progress"]["trajectories"]) == ("addition", 600)
    assert json.loads(tba("status", "-o", "json").out)["ledger"]["stored"] == 600


def test_tables_are_for_people(tba: Tba, api: FakeApi) -> None:
    api.on("GET /v1/tasks", listing(TASK))
    api.on("GET /v1/status", STATUS)
    assert "0.625" in tba("tasks", "list").out
    assert "balanced" in tba("status").out


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_a_task_can_be_steered(tba: Tba, api: FakeApi, command: str) -> None:
    api.on(f"POST /v1/tasks/addition/{command}", TASK)
    assert tba("tasks", command, "addition").code == 0


def test_a_task_can_be_deleted_without_a_word(tba: Tba, api: FakeApi) -> None:
    api.on("DELETE /v1/tasks/addition", Reply(None, 204))
    assert tba("tasks", "delete", "addition") == Ended(0, "", "")


def test_prompts_can_be_added(tba: Tba, api: FakeApi, tmp_path: Path) -> None:
    data = [{"prompt_id": 1, "split": "train", "created": True}, {"prompt_id": 2, "split": "train", "created": False}]
    api.on("POST /v1/tasks/addition/prompts", Reply({"data": data, "created": 1}, 201))
    file = tmp_path / "more.jsonl"
    file.write_text('{"text": "1+1="}\n{"text": "2+2="}\n')
    assert "1 of 2 prompts are new in addition" in tba("tasks", "add", "addition", str(file)).out


def test_an_evaluation_can_be_asked_for(tba: Tba, api: FakeApi) -> None:
    asked = {"task": "addition", "policy_version": 3, "prompts": 600, "created": True}
    api.on("POST /v1/tasks/addition/evaluations", Reply(asked, 202))
    assert "600 held-out prompts" in tba("tasks", "evaluate", "addition", "--policy-version", "3").out
    assert api.asked[0].body == {"policy_version": 3}


def test_watching_ends_at_the_step_that_was_named(tba: Tba, api: FakeApi) -> None:
    api.on("GET /v1/status", STATUS)
    api.on("GET /v1/steps", listing(step(7)))
    ended = tba("watch", "--until-step", "7")
    assert (ended.code, ended.out.startswith("step 7")) == (0, True)


@pytest.mark.parametrize(
    ("status", "code"), [(400, 2), (413, 2), (422, 2), (401, 3), (403, 3), (404, 4), (409, 5), (500, 1)]
)
def test_a_refusal_ends_with_the_code_of_its_kind_and_says_why(tba: Tba, api: FakeApi, status: int, code: int) -> None:
    api.on("GET /v1/status", problem(status, ("/name", "a name", "nothing")))
    ended = tba("status")
    assert ended.code == code
    assert ended.out == ""
    assert ended.err == f"tba: It does not fit ({status})\n  /name: expected a name, got nothing\n"


def test_an_api_that_is_not_there_ends_with_6(tba: Tba, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tba_cli.client._FIRST_PAUSE_SECONDS", 0)
    ended = tba("status", "--url", "http://127.0.0.1:1")
    assert ended.code == 6
    assert "http://127.0.0.1:1 does not answer" in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "--no-such-option"),
        ("tasks", "post", "no-such-file.jsonl"),
        ("tasks", "post", "{file}"),
        ("tasks", "post", "{file}", "--name", "sums", "--text-field", "question"),
        ("tasks", "post", "{file}", "--name", "sums", "--match", "guess"),
        ("tasks", "post", "{file}", "--name", "Not A Name"),
    ],
)
def test_a_command_that_does_not_fit_ends_with_2_and_asks_nothing(
    tba: Tba, api: FakeApi, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    file = tmp_path / "sums.jsonl"
    file.write_text('{"text": "1+1="}\n')
    ended = tba(*(argument.format(file=file) for argument in arguments))
    assert ended.code == 2
    assert ended.err
    assert api.asked == []


def test_up_without_a_model_says_how_to_get_one(tba: Tba, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = tba("up")
    assert ended.code == 2
    assert "tba demo" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_down_where_nothing_runs_says_so(tba: Tba, tmp_path: Path) -> None:
    assert "nothing runs" in tba("down", "--directory", str(tmp_path)).out


def test_a_setting_of_one_process_is_named_with_it() -> None:
    said = ["tba-reward-reward_model.gold:TBA_MODEL=models/gold=1", "tba-buffer:TBA_MIN_SIZE=1"]
    assert run_commands.settings_by_process(said) == {
        "tba-reward-reward_model.gold": {"TBA_MODEL": "models/gold=1"},
        "tba-buffer": {"TBA_MIN_SIZE": "1"},
    }


@pytest.mark.parametrize("said", ["TBA_MIN_SIZE=1", "tba-buffer:TBA_MIN_SIZE", ":A=1"])
def test_a_setting_of_no_process_is_refused(said: str) -> None:
    with pytest.raises(BadInput, match="expected PROCESS:NAME=VALUE"):
        run_commands.settings_by_process([said])
