"""The math family as a demo: two-digit addition again, each held-out sum answered four times, for pass@1 and pass@4."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from tba_cli.presets import addition
from tba_cli.presets.preset import Measure
from tba_common.tasks import Evaluation

PRESET: Final = replace(
    addition.PRESET,
    name="math",
    directory=Path("runs/demo-math"),
    task=addition.PRESET.task.model_copy(update={"evaluation": Evaluation(completions=4, temperature=1.0)}),
    measure=Measure(beside=("pass@1", "pass@4")),
)
