"""What differs between two machines that score; what a right answer is belongs to the task."""

from __future__ import annotations

from pydantic import Field

from tba_common.settings import WorkerSettings


class RewardSettings(WorkerSettings):
    """Settings of `tba-reward-<scorer>`."""

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
    parallel_rollouts: int = Field(
        default=4,
        ge=1,
        le=1_024,
        description="rollouts in the scorer at once; fewer than it can work on leaves it idle, many more make "
        "a stop outlast the grace period",
    )
    window: int = Field(
        default=64,
        ge=1,
        description="rollouts in hand, scored or not; too few waits for Kafka, too many takes work away from siblings",
    )
