"""`tba watch`: the run as it goes. A live page on a terminal, one line a step elsewhere, JSON lines for machines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tba_cli import show
from tba_cli.answers import Evaluation, Status, StepAnswer, Trajectory
from tba_cli.client import Client
from tba_cli.errors import Unavailable
from tba_cli.escapes import visible

_TRAJECTORIES: Final = 8
_TO_CHOOSE_FROM: Final = 200
_EVALUATIONS: Final = 6


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the API found; `steps` are those since the look before."""

    status: Status
    steps: list[StepAnswer]


def looks(
    client: Client, *, every_seconds: float, until_step: int | None, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Look | Unavailable]:
    """Look again and again, until a step is reached if one is named. An API that is away is looked for again."""
    after = -1
    while True:
        try:
            look = Look(client.status(), client.steps(after))
        except Unavailable as error:
            yield error
        else:
            yield look
            # A learner that went back to its checkpoint takes some steps again.
            after = look.steps[-1].step if look.steps else min(after, look.status.step)
            if until_step is not None and look.status.step >= until_step:
                return
        sleep(every_seconds)


def print_lines(found: Iterable[Look | Unavailable], console: Console) -> None:
    """Print one line a step, and what is awaited whenever that changes."""
    awaited = ""
    for look in found:
        steps = look.steps if isinstance(look, Look) else []
        for step in steps:
            console.print(Text(show.step_line(step)), soft_wrap=True)
        before, awaited = awaited, look.status.waiting_for if isinstance(look, Look) else str(look)
        if not steps and awaited != before:
            console.print(Text(visible(awaited)), soft_wrap=True)


def write_json(found: Iterable[Look | Unavailable]) -> None:
    """Write one JSON object a look: `status`, and the `steps` since the look before."""
    for look in found:
        if isinstance(look, Look):
            steps = [step.model_dump(mode="json") for step in look.steps]
            line = {"status": look.status.model_dump(mode="json"), "steps": steps}
            print(json.dumps(line), flush=True)  # noqa: T201


def show_live(found: Iterable[Look | Unavailable], client: Client, console: Console) -> None:
    """Keep one page up to date."""
    last: StepAnswer | None = None
    with Live(console=console, auto_refresh=False) as live:
        for look in found:
            if isinstance(look, Unavailable):
                live.update(Text(visible(str(look))), refresh=True)
                continue
            last = look.steps[-1] if look.steps else last
            try:
                details = _details(client)
            except Unavailable as error:
                live.update(Text(visible(str(error))), refresh=True)
                continue
            live.update(show.run_page(look.status, last, *details), refresh=True)


def _details(client: Client) -> tuple[list[Evaluation], list[Trajectory]]:
    newest_of_prompt = {found.prompt_id: found for found in reversed(client.trajectories(limit=_TO_CHOOSE_FROM))}
    return client.evaluations()[-_EVALUATIONS:], list(newest_of_prompt.values())[-_TRAJECTORIES:]
