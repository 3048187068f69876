"""The options that the commands share: which API, with which key, and for whom the answer is."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

import typer


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
