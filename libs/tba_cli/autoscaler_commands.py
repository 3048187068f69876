"""Commands about the number of generators: show, override, clear. Each imports what it needs when it is called."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from tba_cli.options import DEFAULT_URL, ApiKey, Format, Output, Url


def show(url: Url = DEFAULT_URL, api_key: ApiKey = None, output: Output = Format.table) -> None:
    """Show what the autoscaler sees, what it decided and why."""
    from tba_cli import show as showing
    from tba_cli.autoscaler_page import autoscaler_page
    from tba_cli.client import Client

    with Client(url, api_key) as client:
        found = client.autoscaler()
    showing.answer(found, autoscaler_page(found), as_json=output is Format.json)


def override(
    replicas: Annotated[int, typer.Argument(min=0, help="Generators there should be.")],
    minutes: Annotated[float, typer.Option("--for", min=0.1, help="For so many minutes.")] = 60.0,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Put a number in place of the autoscaler's for a while."""
    from tba_cli.client import Client

    until = datetime.now(UTC) + timedelta(minutes=minutes)
    with Client(url, api_key) as client:
        client.override_autoscaler(replicas, until)
    typer.echo(f"{replicas} generators until {until:%Y-%m-%d %H:%M} UTC")


def clear(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Let the autoscaler decide again."""
    from tba_cli.client import Client

    with Client(url, api_key) as client:
        client.clear_override()
    typer.echo("the autoscaler decides")
