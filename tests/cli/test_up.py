"""`tba up` and `tba down` around tiny processes: one stack a directory, an orderly end, nothing left."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console

from tba_cli.local import state_file
from tba_cli.local.supervisor import STATE_FILE
from tba_cli.up import down, printer
from tests.cli.local.processes import wait_until
from tests.cli.tiny_platform import DEAF, TINY_PLATFORM

pytestmark = pytest.mark.integration

#: Gets its Ctrl-C in a destructor.
DEAF_MOMENT = f"""
from tba_cli import up
{DEAF}
up.Client = lambda *_, real=up.Client, **named: (Deaf(), real(*_, **named))[1]
"""


class Up(NamedTuple):
    """A `tba up`, and the file with what it says."""

    process: subprocess.Popen[bytes]
    said: Path

    def end(self) -> str:
        """Wait for its end; return all that it said."""
        self.process.wait(60)
        return self.said.read_text()


@contextmanager
def tba_up(directory: Path, before: str = "") -> Iterator[Up]:
    """A `tba up` that has said that it is up, or has ended; `before` is Python that it runs first."""
    arguments = ("up", "--directory", str(directory), "--model", "some/policy", "--port", "0")
    command = [sys.executable, "-c", before + TINY_PLATFORM, *arguments]
    said, log = directory / f"said.{len(list(directory.glob('said.*')))}", directory / "logs/tiny.log"
    with said.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:

        def is_up() -> bool:
            return "TBA is up" in said.read_text() and "hello" in log.read_text()

        try:
            wait_until(lambda: process.poll() is not None or is_up())
            yield Up(process, said)
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with tba_up(tmp_path) as up:
        state = state_file.read(tmp_path / STATE_FILE)
        assert state is not None
        up.process.send_signal(number)
        output = up.end()
    assert up.process.returncode == 0
    assert "TBA is up" in output
    assert "tiny                   | hello" in output
    assert not any(map(state_file.lives, state.processes))
    assert not (tmp_path / STATE_FILE).exists()


def test_a_signal_is_heard_where_its_exception_is_lost(tmp_path: Path) -> None:
    with tba_up(tmp_path, before=DEAF_MOMENT) as up:
        output = up.end()
    assert "Exception ignored" in output
    assert up.process.returncode == 0
    assert not (tmp_path / STATE_FILE).exists()


def test_a_second_one_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    with tba_up(tmp_path), tba_up(tmp_path) as second:
        assert "another stack is running" in second.end()
        assert second.process.returncode == 1


def test_down_ends_what_runs_in_a_directory(tmp_path: Path) -> None:
    with tba_up(tmp_path) as up:
        assert down(tmp_path) == ["supervisor", "tiny"]
        assert up.process.wait(60) == 0
    assert down(tmp_path) == []


def test_a_killed_one_does_not_keep_the_next_from_starting(tmp_path: Path) -> None:
    with tba_up(tmp_path) as killed:
        killed.process.kill()
        killed.process.wait()
    assert (tmp_path / STATE_FILE).exists()
    (tmp_path / "logs/tiny.log").unlink()
    with tba_up(tmp_path) as up:
        assert up.process.poll() is None
        assert down(tmp_path) == ["supervisor", "tiny"]


def test_lines_stand_behind_the_name_of_their_process_and_obey_nobody() -> None:
    console = Console(width=80, highlight=False)
    print_line = printer(console)
    with console.capture() as output:
        print_line("tba-learner", "\x1b[2Jstep [red]1[/red]")
        print_line("tba-api", "listening")
    assert output.get().splitlines() == [
        "tba-learner            | \\x1b[2Jstep [red]1[/red]",
        "tba-api                | listening",
    ]
