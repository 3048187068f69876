"""The rules last_number and math on worked solutions of GSM8K: how often they agree, and where they do not.

    python -m tests.bench.gsm8k [file.jsonl ...]

Each solution is read in three ways: as it is, without its last line `#### N`, and against the answer of the next
problem. The last line is one JSON object. Without files: the 1,000 problems in tests/data.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from services.reward.verifier_math import equivalent
from services.reward.verifier_rules import last_number, same_last_number

SAMPLE: Final = Path(__file__).parent.parent / "data/gsm8k.jsonl"

Reading = Literal["solution", "without its last line", "of another problem"]


@dataclass(frozen=True)
class Comparison:
    """What two rules say about one text and one answer."""

    text: str
    answer: str
    last_number: bool
    math: bool


def solutions(files: Iterable[Path]) -> list[str]:
    """The worked solutions of JSON lines with an `answer`, each ending in `#### N`."""
    return [json.loads(line)["answer"] for file in files for line in file.read_text().splitlines()]


def gold(solution: str) -> str:
    """What stands behind `####`."""
    return solution.rpartition("####")[2].strip()


def compare(solutions: Sequence[str], reading: Reading) -> list[Comparison]:
    """Both rules on every solution, read in one of the three ways."""
    answers = [gold(solution) for solution in solutions]
    if reading == "of another problem":
        answers = [*answers[1:], answers[0]]
    texts = [s.rpartition("####")[0] for s in solutions] if reading == "without its last line" else solutions
    return [
        Comparison(text, answer, same_last_number(text, answer), equivalent(text, answer))
        for text, answer in zip(texts, answers, strict=True)
    ]


def main() -> None:
    """Print where the rules differ, and how often they agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=[SAMPLE])
    worked = solutions(parser.parse_args().files)
    figures: dict[str, float] = {
        "solutions": len(worked),
        "gold_agreement": sum(last_number(s) == float(gold(s).replace(",", "")) for s in worked) / len(worked),
    }
    for reading in get_args(Reading):
        comparisons = compare(worked, reading)
        different = [c for c in comparisons if c.last_number != c.math]
        for c in different:
            says = "last_number" if c.last_number else "math"
            print(f"{reading}: only {says} finds {c.answer} in ...{c.text.strip()[-80:]!r}")
        figures[f"rule_agreement, {reading}"] = 1 - len(different) / len(comparisons)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
