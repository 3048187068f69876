"""`tba up` and `tba down` around tiny processes: one stack a directory, an orderly end, nothing left."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from tba_cli.local import state_file
from tba_cli.local.supervisor import STATE_FILE
from tba_cli.up import down, printer
from tests.cli.local.processes import FOR_EVER, wait_until

pytestmark = pytest.mark.integration

#: The command line with one tiny process in place of the platform.
TINY_PLATFORM = f"""
import sys
from tba_cli import cli
from tba_cli.local import services
from tba_cli.local.process import ProcessSpec
command = (sys.executable, "-S", "-c", "print('hello', flush=True); {FOR_EVER}")
services.specs = lambda options, ports: [ProcessSpec(name="tiny", command=command)]
cli.main()
"""

#: Gets its Ctrl-C in a destructor, out of which no exception comes.
DEAF_MOMENT = """
import os, signal, time
from tba_cli import up
class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60.0)
up.Client = lambda *_, real=up.Client, **named: (Deaf(), real(*_, **named))[1]
"""


@contextmanager
def tba_up(directory: Path, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """A `tba up` that has said that it is up; `before` is Python that it runs first."""
    arguments = ("up", "--directory", str(directory), "--model", "some/policy", "--port", "0")
    command = [sys.executable, "-c", before + TINY_PLATFORM, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            wait_until(lambda: log_has(directory, "hello") or process.poll() is not None)
            yield process
        finally:
            process.kill()


def log_has(directory: Path, text: str) -> bool:
    log = directory / "logs/tiny.log"
    return log.exists() and text in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with tba_up(tmp_path) as process:
        state = state_file.read(tmp_path / STATE_FILE)
        assert state is not None
        process.send_signal(number)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "TBA is up" in output
    assert "tiny                   | hello" in output
    assert not any(map(state_file.lives, state.processes))
    assert not (tmp_path / STATE_FILE).exists()


def test_a_signal_is_heard_where_its_exception_is_lost(tmp_path: Path) -> None:
    with tba_up(tmp_path, before=DEAF_MOMENT) as process:
        output, _ = process.communicate(timeout=20)
    assert "Exception ignored" in output
    assert process.returncode == 0
    assert not (tmp_path / STATE_FILE).exists()


def test_a_second_one_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    with tba_up(tmp_path), tba_up(tmp_path) as second:
        output, _ = second.communicate(timeout=20)
        assert second.returncode == 1
        assert "another stack is running" in output


def test_down_ends_what_runs_in_a_directory(tmp_path: Path) -> None:
    with tba_up(tmp_path) as process:
        assert down(tmp_path) == ["supervisor", "tiny"]
        assert process.wait(20) == 0
    assert down(tmp_path) == []


def test_a_killed_one_does_not_keep_the_next_from_starting(tmp_path: Path) -> None:
    with tba_up(tmp_path) as killed:
        killed.kill()
        killed.wait()
    assert (tmp_path / STATE_FILE).exists()
    (tmp_path / "logs/tiny.log").unlink()
    with tba_up(tmp_path) as process:
        assert process.poll() is None
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
