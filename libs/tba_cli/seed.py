"""What lets a fresh cluster show that it learns: a first policy, a first task, and the proof that a task is trained.

`python -m tba_cli.seed policy DIRECTORY | task | check`. Each may be started again at any moment: a Job does that.
"""

from __future__ import annotations

import shutil
import sys
import time
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer
from rich.text import Text

from tba_cli.client import Client
from tba_cli.errors import TbaError, Unavailable
from tba_cli.escapes import visible_lines
from tba_cli.options import DEFAULT_URL, ApiKey, Url
from tba_cli.presets.addition import PRESET, problems, supervised_start
from tba_cli.presets.preset import DemoError, Start
from tba_common.disk import new_directory
from tba_common.lifecycle import end_on_sigterm

_LOOK_SECONDS: Final = 2.0
_CHECK_PROMPTS: Final = 64
_SEED: Final = 0  # which problems are held out

app = typer.Typer(help="Seed a fresh deployment with the addition demo.", add_completion=False)


@app.command()
def policy(directory: Annotated[Path, typer.Argument(help="Where the policy goes, unless one is there.")]) -> None:
    """Make the demo's first policy: tiny, and right about two times out of three."""
    if directory.exists():
        print(f"{directory} is there already")  # noqa: T201
        return
    with TemporaryDirectory() as work:
        start = Start(directory=Path(work), models=Path(work), prompts=problems(_SEED), say=_say)
        made = supervised_start(start)
        with new_directory(directory) as aside:
            shutil.copytree(made, aside, dirs_exist_ok=True)


@app.command()
def task(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Post the demo's task, unless it is there; waits for the API."""
    with Client(url, api_key) as client:
        _wait_for(client)
        if any(found.name == PRESET.task.name for found in client.tasks()):
            print(f"task {PRESET.task.name} is there already")  # noqa: T201
            return
        posted = client.post_task(PRESET.task, problems(_SEED))
        print(f"task {posted.name}: {posted.progress.prompts_train} prompts")  # noqa: T201


@app.command()
def check(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    within: Annotated[float, typer.Option(help="Seconds until a step must have been trained.")] = 900.0,
) -> None:
    """Post a small task of its own, wait until the learner has trained on it, and take it away again."""
    name = f"check-{uuid.uuid4().hex[:8]}"
    deadline = time.monotonic() + within
    with Client(url, api_key) as client:
        _wait_for(client)
        client.post_task(PRESET.task.model_copy(update={"name": name}), problems(_SEED)[:_CHECK_PROMPTS])
        try:
            while (progress := client.task(name).progress).task_steps == 0:
                if time.monotonic() > deadline:
                    why = client.status().waiting_for
                    raise TbaError(f"task {name} was not trained within {within:.0f} s: {progress}; {why}")
                time.sleep(_LOOK_SECONDS)
        finally:
            client.delete(name)
    print(f"task {name}: {progress.trajectories} trajectories scored and stored, trained on")  # noqa: T201


def _wait_for(client: Client) -> None:
    """Wait for as long as it takes until the API answers; it may refuse while the schema is being made."""
    while True:
        try:
            client.status()
        except Unavailable as error:
            print(f"waiting for the API: {visible_lines(str(error))}", file=sys.stderr)  # noqa: T201
            time.sleep(_LOOK_SECONDS)
        else:
            return


def _say(text: str) -> None:
    """A preset speaks to a terminal; here are logs."""
    print(Text.from_markup(text).plain, flush=True)  # noqa: T201


def main() -> None:
    """Run the command line."""
    end_on_sigterm()
    try:
        app()
    except (DemoError, TbaError) as error:
        print(f"seed: {visible_lines(str(error))}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


if __name__ == "__main__":
    main()
