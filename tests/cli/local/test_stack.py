"""A stack does not start where another one lives."""

from __future__ import annotations

import fcntl
import socket
from pathlib import Path

import pytest

from tba_cli.local.stack import AlreadyRunning, Stack, StackOptions, StartError


def test_a_directory_belongs_to_one_stack_at_a_time(tmp_path: Path) -> None:
    stack = Stack(StackOptions(directory=tmp_path, model="some/policy"))
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(AlreadyRunning, match=str(tmp_path)):
            stack.start()


def test_a_port_that_is_taken_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stack = Stack(StackOptions(directory=tmp_path, model="some/policy", api_port=port))
        with pytest.raises(StartError, match=str(port)):
            stack.start()
    assert stack.pids() == {}


def test_a_failed_start_gives_the_directory_back(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        stack = Stack(StackOptions(directory=tmp_path, model="some/policy", api_port=taken.getsockname()[1]))
        with pytest.raises(StartError):
            stack.start()
    with (tmp_path / "lock").open("w") as free:
        fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("folder", ["no/such/folder", "."])
def test_a_folder_without_a_policy_is_named_before_anything_starts(tmp_path: Path, folder: str) -> None:
    model = tmp_path / folder
    stack = Stack(StackOptions(directory=tmp_path / "stack", model=str(model)))
    with pytest.raises(StartError, match=f"no policy in {model}"):
        stack.start()
    assert stack.pids() == {}
