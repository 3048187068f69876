"""The demo, cut short: every room does its part, and what it leaves behind is complete and true.

How far the accuracy rises takes the whole length of `make demo`; here it is the line that is held to its promises.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

STEPS = 40
LIMIT_SECONDS = 900


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tba demo` left behind."""
    directory = tmp_path_factory.mktemp("demo") / "run"
    command = [str(Path(sys.executable).with_name("tba")), "demo", "--directory", str(directory), "--steps", str(STEPS)]
    done = subprocess.run(command, timeout=LIMIT_SECONDS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-5_000:]
    return directory


@pytest.fixture(scope="module")
def report(demo: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((demo / "report.json").read_text())
    return loaded


def test_the_start_is_right_about_half_the_time_on_problems_it_never_saw(report: dict[str, Any]) -> None:
    assert report["held_out_problems"] >= 500
    assert 0.5 <= report["accuracy_before"] <= 0.85
    assert report["steps"] == STEPS


def test_generating_and_learning_were_asynchronous(report: dict[str, Any]) -> None:
    assert report["policy_versions"] >= 10
    assert len(report["staleness"]) > 1
    assert sum(name.startswith("tba-generator") for name in (process["name"] for process in report["processes"])) >= 2


def test_every_completion_is_accounted_for(report: dict[str, Any]) -> None:
    ledger = dict(report["ledger"])
    assert ledger.pop("issued") == sum(ledger.values())
    assert ledger["stored"] == report["trajectories"]


def test_no_process_is_left_behind(report: dict[str, Any]) -> None:
    assert report["processes"]
    assert [process for process in report["processes"] if Path(f"/proc/{process['pid']}").exists()] == []


def test_the_trained_policy_is_a_hugging_face_folder(demo: Path, report: dict[str, Any]) -> None:
    files = {path.name for path in (demo / "policy").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert report["prompt_format"].format(a=4, b=7) == "04+07="
    assert (demo / "report.html").read_text().count("<svg") == 5
