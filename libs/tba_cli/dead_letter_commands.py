"""`tba dlq`: what could not be handled. Each command imports what it needs when it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from tba_cli.errors import BadInput, TbaError
from tba_cli.options import DEFAULT_URL, ApiKey, Format, Output, Url

if TYPE_CHECKING:
    from tba_cli.client import Client

Ids = Annotated[list[int] | None, typer.Argument(help="Ids of dead letters, as `tba dlq list` shows them.")]
Service = Annotated[str | None, typer.Option(help="Only of this service, such as tba-reward-verifier.")]
TaskName = Annotated[str | None, typer.Option(help="Only of this task.")]
Reason = Annotated[str | None, typer.Option(help="Only where the reason has this text.")]
_PAGE = 200


def list_all(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    output: Output = Format.table,
    service: Service = None,
    task: TaskName = None,
    reason: Reason = None,
    limit: Annotated[int, typer.Option(min=1, max=_PAGE, help="At most so many, the newest.")] = 50,
) -> None:
    """List dead letters, newest first."""
    from tba_cli import request_calls, request_tables, show
    from tba_cli.client import Client

    with Client(url, api_key) as client:
        found = request_calls.dead_letters(client, service=service, task=task, reason=reason, limit=limit)
    show.answer(found, request_tables.dead_letters_table(found), as_json=output is Format.json)


def show(
    dead_letter_id: Annotated[int, typer.Argument(help="Its id.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    output: Output = Format.table,
) -> None:
    """Show one dead letter with its body."""
    from tba_cli import request_calls, request_tables
    from tba_cli import show as showing
    from tba_cli.client import Client

    with Client(url, api_key) as client:
        found = request_calls.dead_letter(client, dead_letter_id)
    showing.answer(found, request_tables.dead_letter_grid(found), as_json=output is Format.json)


def replay(
    ids: Ids = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    service: Service = None,
    task: TaskName = None,
    reason: Reason = None,
) -> None:
    """Open the orders of dead letters again and send what failed to where it failed; all that fit, or those named."""
    from tba_cli import request_calls

    _each(ids, url, api_key, request_calls.replay, "replayed", service=service, task=task, reason=reason)


def drop(
    ids: Ids = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    service: Service = None,
    task: TaskName = None,
    reason: Reason = None,
) -> None:
    """Forget dead letters; all that fit, or those named. How their orders ended stays in the ledger."""
    from tba_cli import request_calls

    _each(ids, url, api_key, request_calls.drop, "dropped", service=service, task=task, reason=reason)


def _each(
    ids: list[int] | None,
    url: str,
    api_key: str | None,
    change: Callable[[Client, int], object],
    done: str,
    **query: str | None,
) -> None:
    """Change the dead letters that are named, or else all that the query finds and that were not sent again yet."""
    from tba_cli import request_calls
    from tba_cli.client import Client
    from tba_cli.errors import ApiError
    from tba_cli.escapes import visible_lines

    if not ids and not any(query.values()):
        raise BadInput("which ones? give ids, or --service, --task or --reason")
    with Client(url, api_key) as client:
        if not ids:
            found = request_calls.every_dead_letter(client, **query)
            ids = [letter.dead_letter_id for letter in found if letter.replay in ("none", "refused")]
        refused = 0
        for dead_letter_id in ids:
            try:
                change(client, dead_letter_id)
            except ApiError as error:
                refused += 1
                typer.echo(f"{dead_letter_id}: {visible_lines(str(error))}", err=True)
    typer.echo(f"{len(ids) - refused} {done}")
    if refused:
        raise TbaError(f"{refused} of {len(ids)} could not be {done}")
