"""`tba up` and `tba down`: the platform of one directory, in the foreground until Ctrl-C."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from tba_cli.client import Client
from tba_cli.errors import TbaError
from tba_cli.escapes import visible
from tba_cli.local import state_file
from tba_cli.local.generator_pool import GeneratorPool
from tba_cli.local.stack import Stack, StackOptions
from tba_cli.local.supervisor import STATE_FILE, OnLine
from tba_cli.signals import told_to_end
from tba_common.lifecycle import configure_logging

_COLOURS: Final = ("cyan", "green", "yellow", "blue", "magenta", "bright_cyan", "bright_green", "bright_magenta")
_NAME_CHARACTERS: Final = 22
_DOWN_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.5


def up(options: StackOptions, console: Console, api_key: str | None = None) -> bool:
    """Run a stack until Ctrl-C or SIGTERM (returns True), or until it ended by itself (returns False).

    With `autoscale`, as many generators run as the API says there should be; `api_key` is its key, if it has one.

    Raises:
        AlreadyRunning, StartError: see `Stack.start`.
    """
    configure_logging("text")
    told = told_to_end()
    try:
        with Stack(options, on_line=printer(console)) as stack:
            console.print(Text(_welcome(stack), style="bold"), soft_wrap=True)
            with Client(stack.url, api_key, attempts=1) as client:
                while stack.supervisor.running and not told.is_set():
                    if options.autoscale is not None:
                        follow(client, stack.generators)
                    time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        return True
    return told.is_set()


def follow(client: Client, generators: GeneratorPool) -> None:
    """Bring the generators one turn nearer to the number that the API says; without an answer they stay as they are."""
    with suppress(TbaError):
        generators.scale(client.desired_generators())
    generators.turn()


def down(directory: Path) -> list[str]:
    """End the stack of a directory, or what a killed one left; return the names of what was ended."""
    state = state_file.read(directory / STATE_FILE)
    if state is None:
        return []
    ended = [process.name for process in (state.supervisor, *state.processes) if state_file.lives(process)]
    state_file.end([state.supervisor], grace_seconds=_DOWN_SECONDS)
    state_file.end(state.processes, grace_seconds=_DOWN_SECONDS)
    (directory / STATE_FILE).unlink(missing_ok=True)
    return ended


def printer(console: Console) -> OnLine:
    """Print lines behind the name of their process, each name in its colour."""
    colours = itertools.cycle(_COLOURS)
    styles: dict[str, str] = {}

    def print_line(name: str, line: str) -> None:
        style = styles.setdefault(name, next(colours))
        prefix = (f"{name:<{_NAME_CHARACTERS}} | ", style)
        console.print(Text.assemble(prefix, visible(line)), soft_wrap=True)

    return print_line


def _welcome(stack: Stack) -> str:
    return (
        f"TBA is up: {stack.url} (directory {stack.directory})\n"
        f"Post a task with `tba tasks post`, follow it with `tba watch`, end everything with Ctrl-C."
    )
