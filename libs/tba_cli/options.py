"""The options that the commands share: which API, with which key, and for whom the answer is."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

import typer

from tba_cli.errors import BadInput


class Format(StrEnum):
    """How an answer is written."""

    table = "table"
    json = "json"


class Match(StrEnum):
    """When an answer is right."""

    exact = "exact"
    last_number = "last_number"
    math = "math"


DEFAULT_URL: Final = "http://127.0.0.1:8000"
Url = Annotated[str, typer.Option(envvar="TBA_URL", help="Where the API is.")]
ApiKey = Annotated[str | None, typer.Option(envvar="TBA_API_KEY", show_default=False, help="Its key, if it has one.")]
Output = Annotated[Format, typer.Option("--output", "-o", help="For people, or stable JSON for machines.")]


def bounds(text: str) -> tuple[int, int]:
    """Read MIN:MAX.

    Raises:
        BadInput: not two whole numbers, or the first is larger, or there would never be any.
    """
    fewest, colon, most = text.partition(":")
    if not (colon and fewest.isdecimal() and most.isdecimal() and int(fewest) <= int(most) and int(most) > 0):
        raise BadInput(f"--autoscale: expected MIN:MAX such as 1:4, got {text!r}")
    return int(fewest), int(most)
