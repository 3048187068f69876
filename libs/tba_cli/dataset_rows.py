"""The door to data sets: rows of a JSONL file, of stdin, or of a Hugging Face data set by its name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tba_cli.errors import BadInput, TbaError

_STDIN: Final = "-"


@dataclass(frozen=True, slots=True)
class Row:
    """One row, and where a person finds it again."""

    place: str  # "train.jsonl, line 12"
    fields: Mapping[str, Any]


def rows_of(source: str, *, config: str | None = None, split: str | None = None) -> Iterator[Row]:
    """Read a JSONL file where there is one of this name (- is stdin), else a data set of the Hugging Face hub.

    Raises:
        BadInput: a line that is no JSON object; neither a file nor the name of a data set; a data set without a split.
        TbaError: the library `datasets` is not installed, or the hub cannot be reached.
    """
    if source == _STDIN:
        return _lines(sys.stdin.buffer, "stdin")
    path = Path(source)
    if path.is_file():
        return _file(path)
    if path.suffix or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise BadInput(f"{source}: expected a JSONL file or the name of a data set, got no such file")
    return _dataset(source, config, split)


def _file(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        yield from _lines(file, path.name)


def _lines(lines: Iterable[bytes], name: str) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            fields = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise BadInput(f"{place}: expected UTF-8, got byte {line[error.start]:#04x} at {error.start}") from error
        except json.JSONDecodeError as error:
            raise BadInput(f"{place}: expected a JSON object, got {error}") from error
        if not isinstance(fields, dict):
            raise BadInput(f"{place}: expected a JSON object, got {type(fields).__name__}")
        yield Row(place, fields)


def _dataset(name: str, config: str | None, split: str | None) -> Iterator[Row]:
    if split is None:
        raise BadInput(f"{name}: expected --split for a data set of the hub, got none")
    try:
        from datasets import exceptions, load_dataset
    except ImportError as error:
        raise TbaError(f"{name}: a data set of the hub needs pip install 'tba[datasets]'") from error
    try:
        rows = load_dataset(name, config, split=split)
    except (exceptions.DatasetsError, ConnectionError, FileNotFoundError, ValueError) as error:
        raise TbaError(f"{name}: expected a data set of the hub, or a JSONL file; got {error}") from error
    return (Row(f"{name}/{split}, row {number}", row) for number, row in enumerate(rows, start=1))
