"""Pairs of a better and a worse answer, as a reward model is trained on them: one JSON object a line."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

FIELDS: Final = ("prompt", "chosen", "rejected")


class Pair(NamedTuple):
    """A prompt, the answer that was preferred, and the one that was not; `where` is file and line."""

    where: str
    prompt: str
    chosen: str
    rejected: str


def read_pairs(path: Path) -> list[Pair]:
    """Read a JSONL file of objects with the strings prompt, chosen and rejected; other fields are left alone.

    Raises:
        OSError: no such file.
        ValueError: a line is something else; says which line and field, what was expected and what came.
    """
    # Not splitlines: a JSON string may hold U+2028 and others that it takes for the end of a line.
    lines = path.read_text("utf-8").removesuffix("\n").split("\n")
    return [_pair(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def split_pairs(pairs: Sequence[Pair], held_out: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Divide pairs into those to train on and those to measure on, by prompt: no prompt is on both sides.

    Raises:
        ValueError: one side would be empty.
    """
    prompts = sorted({pair.prompt for pair in pairs})
    random.Random(seed).shuffle(prompts)  # noqa: S311  # no secret
    kept_back = set(prompts[: round(len(prompts) * held_out)])
    train, held = [p for p in pairs if p.prompt not in kept_back], [p for p in pairs if p.prompt in kept_back]
    if not train or not held:
        raise ValueError(f"expected pairs to train on and pairs to hold out, got {len(train)} and {len(held)}")
    return train, held


def _pair(line: str, where: str) -> Pair:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: expected a JSON object, got {line[:80]!r}: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
    for field in FIELDS:
        if not isinstance(record.get(field), str):
            got = type(record[field]).__name__ if field in record else "no such field"
            raise ValueError(f"{where}: {field}: expected a string, got {got}")
    pair = Pair(where, record["prompt"], record["chosen"], record["rejected"])
    if pair.chosen == pair.rejected:
        raise ValueError(f"{where}: rejected: expected another answer than chosen, got the same")
    return pair
