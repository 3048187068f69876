"""What differs between two victims: the model, and what it reads around an attack."""

from __future__ import annotations

from pydantic import Field, field_validator

from services.reward.model_settings import ModelSettings
from tba_common.tasks import TEXT


class VictimSettings(ModelSettings):
    """Settings of `tba-reward-victim`."""

    model: str = Field(min_length=1, description="a Hugging Face folder, or a hub id with a revision: who is attacked")
    text_template: str = Field(
        default=TEXT,
        description="what the victim reads under the option template text, with {text} once for the attack; without "
        "the frame it was trained on, a model answers unlike itself",
    )

    @field_validator("text_template")
    @classmethod
    def _has_one_text(cls, template: str) -> str:
        if (times := template.count(TEXT)) != 1:
            raise ValueError(f"expected {TEXT} once, got it {times} times")
        return template
