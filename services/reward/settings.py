"""What every scorer process has in common; each kind adds its own fields in `<kind>_settings.py`.

What differs between two machines that score stands here; what a right answer is belongs to the task.
"""

from __future__ import annotations

from pydantic import Field

from tba_common.settings import WorkerSettings


class RewardSettings(WorkerSettings):
    """Settings of `tba-reward-<scorer>`, whatever its kind. A kind's class adds fields and changes none of these."""

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
    visit_limit_seconds: float = Field(
        default=300.0,
        gt=0,
        le=600,
        description="for one rollout in the scorer, as the last resort where the scorer has no limits of its own; too "
        "short dead-letters honest work, too long lets a visit that hangs hold a place",
    )
    retry_rounds: int = Field(
        default=3,
        ge=0,
        le=10,
        description="times a rollout that has no score for a passing fault comes again by the retry topic; too few "
        "dead-letters what an outage delays, too many keeps what will never be scored",
    )
    retry_seconds: float = Field(
        default=20.0,
        gt=0,
        le=300,
        description="until the first of these rounds, doubled for each that follows, 300 at most; too short asks a "
        "service that is down all the time, too long lets trajectories become stale",
    )
