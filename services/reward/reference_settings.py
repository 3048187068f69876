"""What differs between two reference models."""

from __future__ import annotations

from pydantic import Field

from services.reward.model_settings import ModelSettings


class ReferenceSettings(ModelSettings):
    """Settings of `tba-reward-reference`."""

    model: str = Field(
        min_length=1,
        description="a Hugging Face folder, or a hub id with a revision: what training started from; another model, "
        "even of the same tokens, moves the target of training",
    )
