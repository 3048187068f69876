"""What a task may ask of each kind of scorer: one frozen model a kind, read by the API's border and by the scorer.

A scorer can only dead-letter what it cannot judge, so whatever can be refused when a task is posted is refused there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import pydantic
from pydantic import Field, field_validator, model_validator

from tba_common.tasks import MAX_TEXT_CHARACTERS, Frozen, kind_of

#: The rules of the verifier that compare with the prompt's reference answer.
COMPARING: Final = frozenset({"exact", "last_number", "math"})


class VerifierOptions(Frozen):
    """1 for a right answer, 0 for a wrong one, by a rule; `reasoning_gym` gives its own score in [0, 1].

    `reasoning_gym` reads the problem from the prompt's metadata: {"reasoning_gym": {"task", "seed", "index", ...}}.
    """

    match: Literal["exact", "last_number", "math", "regex", "json_schema", "reasoning_gym"] = "exact"
    pattern: str | None = Field(default=None, min_length=1, max_length=1_000, description="regex: searched in the text")
    json_schema: dict[str, Any] | None = Field(default=None, description="json_schema: what the text must be as JSON")

    @model_validator(mode="after")
    def _has_what_its_rule_needs(self) -> VerifierOptions:
        for rule, name in (("regex", "pattern"), ("json_schema", "json_schema")):
            given = getattr(self, name) is not None
            if given != (self.match == rule):
                raise ValueError(f"{name}: expected with match {rule} and only there, got match {self.match}")
        return self

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"expected a regular expression, got {pattern!r}: {error}") from error
        return pattern


class CodeOptions(Frozen):
    """The number that `score(prompt, completion, reference)` of the given Python source returns, in a sandbox."""

    source: str = Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)
    seconds: float = Field(default=5.0, gt=0, le=60, description="of processor time and of wall time, a completion")
    memory_mb: int = Field(default=256, ge=32, le=4_096)

    @field_validator("source")
    @classmethod
    def _defines_score(cls, source: str) -> str:
        try:
            compile(source, "score", "exec")
        except SyntaxError as error:
            raise ValueError(
                f"expected Python source, got a syntax error in line {error.lineno}: {error.msg}"
            ) from error
        except (RecursionError, MemoryError) as error:  # the compiler's own limits, which no program reaches
            raise ValueError("expected Python source, got one that is nested too deeply to compile") from error
        if not re.search(r"^def score\(", source, re.MULTILINE):
            raise ValueError("expected a function `def score(prompt, completion, reference)`, got none")
        return source


class RewardModelOptions(Frozen):
    """A scalar head's opinion of prompt and completion. Details: score, and with a reference margin and win.

    `margin` is the score less that of the prompt's reference answer; `win` is 1 above it, 1/2 at it, 0 below.
    `mean` and `deviation` normalise the score: (score - mean) / deviation.
    """

    output: Literal["score", "margin", "win"] = "score"
    mean: float = 0.0
    deviation: float = Field(default=1.0, gt=0)


class ToxicityOptions(Frozen):
    """How toxic a classifier finds the completion, or what a victim answered to it.

    Over a victim's samples `log_probability` is the mean of log p, `probability` the mean of p, and `success` is 1
    where that mean exceeds `threshold`. All three are reported as details.
    """

    of: Literal["completion", "responses"] = "completion"
    output: Literal["log_probability", "probability", "success"] = "log_probability"
    threshold: float = Field(default=0.5, gt=0, lt=1)


class VictimOptions(Frozen):
    """How a frozen model answers the completion. Its own score is the mean length of the answers in tokens."""

    samples: int = Field(default=5, ge=1, le=64)
    temperature: float = Field(default=0.7, ge=0, le=5)
    top_p: float = Field(default=0.92, gt=0, le=1)
    max_new_tokens: int = Field(default=30, ge=1, le=4_096)
    template: Literal["chat", "text"] = Field(default="chat", description="chat: the victim's own chat template")

    @model_validator(mode="after")
    def _samples_differ(self) -> VictimOptions:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"samples expected 1 at temperature 0, where all are alike, got {self.samples}")
        return self


class JudgeOptions(Frozen):
    """What a language model behind an OpenAI-compatible endpoint thinks of an answer, from 0 to 1."""

    rubric: str = Field(min_length=1, max_length=MAX_TEXT_CHARACTERS, description="what a good answer is")
    votes: int = Field(default=1, ge=1, le=15, description="independent opinions, averaged")
    max_disagreement: float = Field(
        default=1.0, gt=0, le=1, description="spread of the votes above which there is no score and no reward"
    )


class ReferenceOptions(Frozen):
    """log pi_ref of the completion's tokens, summed, at the temperature of the policy that is trained."""


class DiversityOptions(Frozen):
    """One minus the mean cosine of a completion's sentence embedding to those of the others of its group."""


Options = (
    VerifierOptions
    | CodeOptions
    | RewardModelOptions
    | ToxicityOptions
    | VictimOptions
    | JudgeOptions
    | ReferenceOptions
    | DiversityOptions
)

OPTIONS: Final[Mapping[str, type[Options]]] = {
    "verifier": VerifierOptions,
    "code": CodeOptions,
    "reward_model": RewardModelOptions,
    "toxicity": ToxicityOptions,
    "victim": VictimOptions,
    "judge": JudgeOptions,
    "reference": ReferenceOptions,
    "diversity": DiversityOptions,
}


def read_options(scorer: str, options: Mapping[str, Any]) -> Options:
    """Read the options of a term for `scorer`, a kind or an instance of one.

    Raises:
        pydantic.ValidationError: an option is unknown or wrong.
        KeyError: no such kind.
    """
    return OPTIONS[kind_of(scorer)].model_validate(options)


def option_faults(scorer: str, options: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Return (place, what is wrong, what came) of every fault in a term's options; empty when they are fine."""
    try:
        read_options(scorer, options)
    except pydantic.ValidationError as error:
        return [
            ("/".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, "), fault["input"])
            for fault in error.errors()
        ]
    return []
