"""The code scorer on rollouts: what a task's function says, and what is told when it says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from services.reward import code_sandbox
from services.reward.code import Code, open_code
from services.reward.code_settings import CodeSettings
from services.reward.scorer import ScoringFailed
from tba_common.codec import BadMessage
from tba_common.settings import WRONG_SETTINGS
from tests.reward.rollouts import prompt, rollout

pytestmark = pytest.mark.integration

DIGITS_RIGHT = """
def score(prompt, completion, reference):
    if completion == "?":
        raise ValueError(f"no answer to {prompt}")
    return sum(a == b for a, b in zip(completion, reference)) / len(reference)
"""


@pytest.fixture(scope="module")
def code() -> Iterator[Code]:
    with open_code("code.digits", CodeSettings(code_enabled=True, evaluation_processes=2)) as code:
        yield code


def test_each_completion_has_what_the_function_returns_for_it(code: Code) -> None:
    judgement = code.score(rollout("19", "10", "29", "no"), {"source": DIGITS_RIGHT})
    assert judgement.values.tolist() == [1, 0.5, 0.5, 0]
    assert judgement.values.dtype == "float32"


def test_an_error_of_the_function_names_its_line_and_the_completion(code: Code) -> None:
    reason = r"^code raised ValueError: no answer to 12\+07= in line 4 on completion 2 of 3$"
    with pytest.raises(ScoringFailed, match=reason):
        code.score(rollout("19", "?", "29"), {"source": DIGITS_RIGHT})


def test_a_completion_that_breaks_the_function_is_named_and_never_scored_zero(code: Code) -> None:
    runs_it = "def score(prompt, completion, reference):\n    exec(completion)\n    return 1"
    with pytest.raises(ScoringFailed, match=r"^code exceeded 5 s on completion 2 of 2$"):
        code.score(rollout("pass", "while True: pass"), {"source": runs_it, "seconds": 5})
    assert code.score(rollout("pass"), {"source": runs_it}).values.tolist() == [1]


def test_a_prompt_without_reference_gives_none(code: Code) -> None:
    source = "def score(prompt, completion, reference):\n    return reference is None"
    assert code.score(rollout("19", of=prompt(reference=None)), {"source": source}).values.tolist() == [1]


def test_a_rollout_that_fails_leaves_every_sandbox_to_the_next(code: Code) -> None:
    fails = "def score(prompt, completion, reference):\n    return None"
    for _ in range(4):
        with pytest.raises(ScoringFailed, match="expected to return a number, got NoneType"):
            code.score(rollout("a", "b", "c"), {"source": fails})
    assert code.score(rollout("19", "19", "19"), {"source": DIGITS_RIGHT}).values.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "options: source: Field required"),
        ({"source": "def score(:"}, "got a syntax error in line 1"),
        ({"source": "score = 1"}, "expected a function `def score"),
        ({"source": DIGITS_RIGHT, "seconds": 1e9}, "options: seconds: "),
    ],
)
def test_options_that_mean_nothing_are_refused(code: Code, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadMessage, match=reason):
        code.score(rollout("19"), options)


def test_its_version_names_the_interpreter(code: Code) -> None:
    assert code.version.startswith("1/python-3.")
    assert code.name == "code.digits"


def test_it_is_off_until_it_is_switched_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TBA_CODE_ENABLED", raising=False)
    with pytest.raises(SystemExit) as end:
        CodeSettings.from_environment()
    assert end.value.code == WRONG_SETTINGS
    assert capsys.readouterr().err.startswith("TBA_CODE_ENABLED: expected true: this scorer runs Python")
    monkeypatch.setenv("TBA_CODE_ENABLED", "true")
    assert CodeSettings.from_environment().code_enabled


def test_it_refuses_to_start_where_a_protection_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(code_sandbox, "filter_program", lambda machine: bytes(8))
    with pytest.raises(SystemExit) as end, open_code("code", CodeSettings(code_enabled=True)):
        pass
    assert end.value.code == WRONG_SETTINGS
    reason = "code: no sandbox on this machine, so no code is run: "
    assert capsys.readouterr().err.startswith(reason + "OSError: [Errno 22] seccomp filter: Invalid argument")
