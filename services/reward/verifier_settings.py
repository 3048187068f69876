"""What differs between two machines that verify answers."""

from __future__ import annotations

from pydantic import Field

from services.reward.settings import RewardSettings


class VerifierSettings(RewardSettings):
    """Settings of `tba-reward-verifier`."""

    time_limit_seconds: float = Field(
        default=5.0,
        gt=0,
        le=30,
        description="for one evaluation; too short dead-letters honest answers, too long lets one hanging "
        "completion hold a worker process",
    )
    evaluation_processes: int = Field(
        default=1,
        ge=1,
        le=256,
        description="worker processes that evaluate at once; more than there are cores makes evaluations "
        "slower and some exceed their time limit",
    )
    recycle_after_evaluations: int = Field(
        default=1_000,
        ge=1,
        description="rollouts after which a worker process is replaced; too many lets the caches of symbolic "
        "algebra fill the memory, too few spends the time on starting processes",
    )
