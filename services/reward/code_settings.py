"""The settings of `tba-reward-code`."""

from __future__ import annotations

from pydantic import Field, field_validator

from services.reward.settings import RewardSettings


class CodeSettings(RewardSettings):
    """Whether code of tasks may run here at all, and how much of it at once."""

    code_enabled: bool = Field(
        default=False,
        validate_default=True,
        description="must be switched on by who runs the cluster: every task then brings code that runs on its nodes",
    )
    evaluation_processes: int = Field(
        default=1,
        ge=1,
        le=256,
        description="evaluations at once, each an interpreter of its own; more than there are cores makes all "
        "slower, and some exceed the time that their task grants",
    )

    @field_validator("code_enabled")
    @classmethod
    def _was_switched_on(cls, is_enabled: bool) -> bool:
        if not is_enabled:
            raise ValueError("expected true: this scorer runs Python that tasks bring, and is off by default")
        return is_enabled
