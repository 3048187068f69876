"""`tba grade` and `tba rescore`: texts through a reward. Each imports what it needs when it is called."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from tba_cli.errors import BadInput, TbaError
from tba_cli.options import DEFAULT_URL, ApiKey, Format, Output, Url

_PAUSE_SECONDS: Final = 1.0  # between two looks at what is not done

RewardFile = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="JSON: a list of scorer terms, or an object with reward and more."),
]


def grade(
    completions: Annotated[list[str], typer.Argument(help="What an answer could be; several are graded together.")],
    prompt: Annotated[str, typer.Option(help="What they answer.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    output: Output = Format.table,
    task: Annotated[str | None, typer.Option(help="Grade with the reward of this task.")] = None,
    reward: RewardFile = None,
    reference: Annotated[str | None, typer.Option(help="The right answer.")] = None,
) -> None:
    """Say what completions are worth, before a task is posted or a token sampled."""
    from tba_cli import request_calls, request_tables, show
    from tba_cli.client import Client

    if (task is None) == (reward is None):
        raise BadInput("expected exactly one of --task and --reward")
    body: dict[str, Any] = {"task": task} if reward is None else _reward(reward)
    body |= {"prompt": {"text": prompt, "reference": reference}, "completions": completions}
    with Client(url, api_key) as client:
        found = request_calls.grade(client, body)
    show.answer(found, request_tables.grades_table(found, completions), as_json=output is Format.json)


def rescore(
    name: Annotated[str, typer.Argument(help="The task's name.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    output: Output = Format.table,
    reward: RewardFile = None,
    min_version: Annotated[int | None, typer.Option(min=0, help="Only what this version or a newer one wrote.")] = None,
    max_version: Annotated[int | None, typer.Option(min=0, help="Only what this version or an older wrote.")] = None,
    min_reward: Annotated[float | None, typer.Option(help="Only from this reward on.")] = None,
    max_reward: Annotated[float | None, typer.Option(help="Only up to this reward.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    requested_by: Annotated[str, typer.Option(envvar="USER", help="Who asks, for the audit.")] = "cli",
    wait: Annotated[bool, typer.Option(help="Wait until it is done.")] = True,
) -> None:
    """Score a task's stored trajectories again; a new reward is the task's from then on."""
    from tba_cli import request_calls, request_tables, show
    from tba_cli.client import Client

    chosen = {"min_version": min_version, "max_version": max_version, "min_reward": min_reward}
    chosen |= {"max_reward": max_reward, "limit": limit}
    body: dict[str, Any] = {} if reward is None else _reward(reward)
    body |= {name: value for name, value in chosen.items() if value is not None} | {"requested_by": requested_by}
    with Client(url, api_key) as client:
        found = request_calls.rescore_task(client, name, body)
        while wait and found.state != "done":
            time.sleep(_PAUSE_SECONDS)
            found = request_calls.rescore(client, found.rescore_id)
    show.answer(found, request_tables.rescore_line(found), as_json=output is Format.json)
    if found.failed:
        raise TbaError(f"{found.failed} trajectories keep their old reward: see `tba dlq list --task {name}`")


def _reward(path: Path) -> dict[str, Any]:
    """Read the fields of a request that a reward file has."""
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: expected JSON, got {error}") from error
    if isinstance(value, list):
        return {"reward": value}
    if isinstance(value, dict) and "reward" in value:
        return {name: value[name] for name in ("reward", "combination") if name in value}
    raise BadInput(f"{path}: expected a list of scorer terms, or an object with reward")
