"""The command: help at once, bad rows in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.reward import train_reward_model

pytestmark = pytest.mark.integration

SCRIPT = """
import sys
from services.reward.__main__ import main
sys.argv[1:] = ["train-reward-model", "--help"]
try:
    main()
finally:
    print(sorted(sys.modules))
"""


def test_help_answers_without_importing_anything_heavy() -> None:
    shown = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    assert "--text-format {text,chat}" in shown
    assert not any(f"'{heavy}'" in shown for heavy in ("torch", "transformers", "trl", "datasets", "pydantic_settings"))


def test_a_bad_row_ends_the_command_with_one_line(tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "p", "chosen": 1, "rejected": "b"}\n')
    arguments = ["--data", str(data), "--model", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        train_reward_model.main(arguments)
    assert ended.value.code == f"train-reward-model: {data}:1: chosen: expected a string, got int"
