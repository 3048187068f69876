"""What the scorers that run a model have in common: which model, where it runs, how much of it at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from services.reward.settings import RewardSettings


class ModelSettings(RewardSettings):
    """Settings of a scorer with a model in it. A kind that cannot do without one makes `model` required."""

    model: str | None = Field(
        default=None,
        min_length=1,
        description="a Hugging Face folder, or a hub id with a revision; whoever can write there decides the scores",
    )
    model_revision: str | None = Field(
        default=None,
        description="the commit of a hub id, 40 hex digits; a branch would change scores in the middle of a run",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto is CUDA where there is one; two processes on one GPU must both fit its memory"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="auto is bfloat16 on CUDA and float32 on a CPU, where the other may crawl; scores differ a little "
        "between the two",
    )
    batch_tokens: int = Field(
        default=8_192,
        ge=1,
        description="tokens that the model reads at once, padding included; bounds its memory, and with too few a GPU "
        "idles",
    )

    @model_validator(mode="after")
    def _is_pinned(self) -> ModelSettings:
        if self.model is None or Path(self.model).is_dir():
            return self
        if not re.fullmatch(r"[0-9a-f]{40}", self.model_revision or ""):
            raise ValueError(
                f"TBA_MODEL {self.model!r} is no folder here; for a hub id TBA_MODEL_REVISION expected a commit of 40 "
                f"hex digits, got {self.model_revision!r}"
            )
        return self
