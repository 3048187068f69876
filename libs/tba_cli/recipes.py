"""Data sets that are known by name: where they are, what their columns mean, and when an answer is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column of a row is what. A row need not have `key` and `metadata`, nor a task need references."""

    text: str = "text"
    reference: str = "reference"
    key: str | None = None
    metadata: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a data set becomes a task; whatever the command line says goes before it."""

    dataset: str  # on the Hugging Face hub
    config: str | None = None
    split: str = "train"
    eval_split: str | None = None  # the held-out prompts, where the data set has its own
    columns: Columns = Columns()
    task: Mapping[str, Any] = field(default_factory=dict)  # fields of a task, as in POST /v1/tasks


#: GSM8K (arXiv:2110.14168) as arXiv:2503.18929 trains on it: its prompt, and right is who ends with the right number.
_GSM8K: Final = Recipe(
    dataset="openai/gsm8k",
    config="main",
    eval_split="test",
    columns=Columns(text="question", reference="answer"),
    task={
        "family": "math",
        "reward": [{"scorer": "verifier", "options": {"match": "last_number"}}],
        "template": "[MATH TASK] Problem:\n{text}\n\nSolution:\n",
        "sampling": {"temperature": 0.7, "max_new_tokens": 512},
    },
)

RECIPES: Final[Mapping[str, Recipe]] = {"gsm8k": _GSM8K}
