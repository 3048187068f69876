"""Dead letters, grades and re-scorings on a terminal. Every text from the line is made visible first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from tba_cli.escapes import shortened, visible, visible_lines
from tba_cli.request_answers import DeadLetter, DeadLetterDetail, Grading, Rescore
from tba_cli.show import number

_TEXT_CHARACTERS: Final = 60
_REASON_CHARACTERS: Final = 100


def dead_letters_table(letters: Sequence[DeadLetter]) -> Table:
    """One row a dead letter."""
    table = Table("id", "service", "task", "for", "replay", "reason", box=None, header_style="bold")
    for found in letters:
        texts = (found.service, found.task or "-", found.purpose or "-", found.replay)
        reason = shortened(found.reason, _REASON_CHARACTERS)
        table.add_row(str(found.dead_letter_id), *(Text(visible(text)) for text in (*texts, reason)))
    return table


def dead_letter_grid(letter: DeadLetterDetail) -> Table:
    """One dead letter with everything that is known of it."""
    grid = Table.grid(padding=(0, 2))
    replay = letter.replay if letter.replay_fault is None else f"{letter.replay}: {letter.replay_fault}"
    body = letter.body if letter.message is None else json.dumps(letter.message, indent=2)
    rows = {
        "service": letter.service,
        "reason": letter.reason,
        "topic": letter.topic,
        "task": letter.task or "unknown",
        "order": "unknown" if letter.issue_id is None else f"{letter.issue_id}, {letter.purpose}",
        "replay": replay,
        "schema": f"{letter.schema_header}, {letter.size_bytes} bytes",
        **({} if letter.undecodable is None else {"does not decode": letter.undecodable}),
    }
    for name, value in rows.items():
        grid.add_row(Text(name, style="bold"), Text(visible(value)))
    grid.add_row(Text("body", style="bold"), Text(visible_lines(body or "")))
    return grid


def grades_table(grading: Grading, completions: Sequence[str]) -> Table:
    """One row a completion: its reward, and each scorer's value with its details."""
    names = [score.scorer for score in grading.completions[0].scores] if grading.completions else []
    table = Table("completion", "reward", *names, box=None, header_style="bold")
    for text, grade in zip(completions, grading.completions, strict=True):
        values = []
        for score in grade.scores:
            details = ", ".join(f"{name} {value:.3g}" for name, value in score.details.items())
            values.append(Text(number(score.value, 3) + (f" ({details})" if details else "")))
        table.add_row(Text(shortened(text, _TEXT_CHARACTERS)), number(grade.reward, 3), *values)
    return table


def rescore_line(found: Rescore) -> str:
    """How far a re-scoring has come."""
    total = "not counted yet" if found.total is None else str(found.total)
    means = f"mean reward {number(found.mean_old_reward, 3)} -> {number(found.mean_new_reward, 3)}"
    counts = f"{found.rescored} of {total} scored again, {found.changed} changed, {found.failed} failed"
    return f"re-scoring {found.rescore_id} of {found.task} is {found.state}: {counts}; {means}"
