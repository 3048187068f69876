"""The `tba` command: which commands there are, and how each failure ends.

Exit codes: 0 done, 1 failed, 2 the command or what it posts does not fit, 3 not allowed, 4 not found,
5 in conflict with what is there, 6 the API is not available.
"""

from __future__ import annotations

import sys
from typing import Final

import typer

from tba_cli import (
    autoscaler_commands,
    dead_letter_commands,
    grade_commands,
    import_commands,
    run_commands,
    task_commands,
)
from tba_cli.errors import TbaError
from tba_cli.escapes import visible_lines

_INTERRUPTED: Final = 130

app = typer.Typer(
    name="tba",
    help="Post-train a language model with Trajectory Balance, asynchronously.",
    epilog="Exit codes: 0 done, 1 failed, 2 does not fit, 3 not allowed, 4 not found, 5 conflict, 6 API unavailable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tasks = typer.Typer(help="Post tasks to a live run, and steer them.", no_args_is_help=True)
autoscaler = typer.Typer(help="See and steer how many generators there are.", no_args_is_help=True)
app.command()(run_commands.up)
app.command()(run_commands.down)
app.command()(run_commands.status)
app.command()(run_commands.watch)
app.command()(run_commands.demo)
app.command()(grade_commands.grade)
app.command()(grade_commands.rescore)
app.add_typer(tasks, name="tasks")
tasks.command()(task_commands.post)
tasks.command()(task_commands.add)
tasks.command()(task_commands.seed)
tasks.command("import")(import_commands.import_rows)
tasks.command("list")(task_commands.list_all)
tasks.command()(task_commands.pause)
tasks.command()(task_commands.resume)
tasks.command()(task_commands.evaluate)
tasks.command()(task_commands.delete)
app.add_typer(autoscaler, name="autoscaler")
autoscaler.command()(autoscaler_commands.show)
autoscaler.command()(autoscaler_commands.override)
autoscaler.command()(autoscaler_commands.clear)
dead_letters = typer.Typer(help="Look at what could not be handled; replay it after the fix.", no_args_is_help=True)
app.add_typer(dead_letters, name="dlq")
dead_letters.command("list")(dead_letter_commands.list_all)
dead_letters.command()(dead_letter_commands.show)
dead_letters.command()(dead_letter_commands.replay)
dead_letters.command()(dead_letter_commands.drop)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except TbaError as error:
        # It may quote what a model wrote: a reason, or the end of a log.
        print(f"tba: {visible_lines(str(error))}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
