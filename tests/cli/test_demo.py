"""Where a demo goes: only what a demo made is ever emptied. And how it ends before its time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tba_cli import demo
from tba_cli.local import stack
from tba_cli.local.stack import AlreadyRunning
from tba_cli.local.supervisor import STATE_FILE
from tba_cli.presets.preset import DemoError
from tests.cli.tiny_platform import DEAF, TINY_PLATFORM


def test_an_earlier_demo_is_emptied_and_what_is_not_there_is_made(tmp_path: Path) -> None:
    directory = tmp_path / "runs/demo"
    demo._empty(directory)
    (directory / "report.json").touch()
    demo._empty(directory)
    assert [path.name for path in directory.iterdir()] == [demo._MARK]


def test_a_directory_with_anything_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DemoError, match="expected no directory, or an empty one, or an earlier demo's"):
        demo._empty(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_a_demo_that_runs_is_not_emptied_under_its_feet(tmp_path: Path) -> None:
    demo._empty(tmp_path)
    (tmp_path / "stack").mkdir()
    with (tmp_path / "stack/lock").open("w") as held:
        stack._lock(held, tmp_path / "stack")
        with pytest.raises(AlreadyRunning, match="another demo is running"):
            demo._empty(tmp_path)
    assert (tmp_path / "stack/lock").exists()
    demo._empty(tmp_path)
    assert not (tmp_path / "stack").exists()


#: Gets its Ctrl-C in a destructor, and then talks to a run that never comes to anything.
DEAF_MOMENT = f"""
from tba_cli import demo
{DEAF}
class Client:
    def __init__(self, *_, **named): Deaf()
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def __getattr__(self, name): return lambda *_: None
    def status(self): time.sleep(60.0)
demo.Client, demo.Stack.learner_is_done = Client, lambda _: False
"""


@pytest.mark.integration
def test_a_signal_is_heard_where_its_exception_is_lost(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DEAF_MOMENT + TINY_PLATFORM, "demo", "--model", "some/policy"]
    arguments = ("--directory", str(tmp_path / "demo"))
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=50, check=False)
    assert "Exception ignored" in done.stderr
    assert done.returncode == 130
    assert not (tmp_path / "demo/stack" / STATE_FILE).exists()
