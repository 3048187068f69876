"""What differs between two reward models: the model, and how it was trained to read."""

from __future__ import annotations

from pydantic import Field

from services.reward.model_settings import ModelSettings
from services.reward.model_text import TextFormat


class RewardModelSettings(ModelSettings):
    """Settings of `tba-reward-reward_model`."""

    model: str = Field(min_length=1, description="a Hugging Face folder, or a hub id with a revision; one scalar head")
    text_format: TextFormat = Field(
        default="text",
        description="chat: prompt and completion as turns of the model's chat template; text: one after the other. "
        "The model must have been trained on the same, or its scores mean little",
    )
    ends_with_eos: bool = Field(
        default=True,
        description="text: append the tokenizer's EOS, as `train-reward-model` and TRL do; if that is wrong, the head "
        "reads another token than the one it was trained on",
    )
