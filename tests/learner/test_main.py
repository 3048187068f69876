"""The command line: help at once, and the commands that make a policy to start from."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from services.learner.__main__ import main
from services.learner.supervised import HELD_OUT

pytestmark = pytest.mark.integration

SCRIPT = """
import sys
from services.learner.__main__ import main
sys.argv[1:] = sys.argv[1].split()
try:
    main()
finally:
    print(sorted(sys.modules))
"""


def cpu_seconds() -> float:
    """What finished child processes have used: unlike the clock, it does not depend on who else is running."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--help", "the process tba-learner"),
        ("supervised --help", "--until-accuracy"),
    ],
)
def test_help_comes_within_a_second_and_imports_nothing_heavy(arguments: str, text: str) -> None:
    before = cpu_seconds()
    shown = subprocess.run([sys.executable, "-c", SCRIPT, arguments], capture_output=True, text=True, check=True).stdout
    assert cpu_seconds() - before < 1
    assert text in shown
    assert not any(f"'{heavy}'" in shown for heavy in ("torch", "transformers", "kafka", "pydantic_settings"))


def test_a_policy_is_made_and_trained_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join([json.dumps({"text": "1=", "reference": "1"})] * (HELD_OUT + 1)))
    monkeypatch.setattr(sys, "argv", ["learner", "tiny", "--out", f"{tmp_path}/tiny"])
    main()
    start = ["--model", f"{tmp_path}/tiny", "--data", str(data), "--out", f"{tmp_path}/start"]
    monkeypatch.setattr(sys, "argv", ["learner", "supervised", *start, "--steps", "1", "--batch", "2"])
    main()
    shown = capsys.readouterr().out
    assert "parameters, untrained" in shown
    assert "supervised step 1/1" in shown
    assert (tmp_path / "start" / "model.safetensors").is_file()
