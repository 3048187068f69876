"""The learner's settings: where the policy comes from and goes to, and how fast it moves."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from services.learner.schedule import LearningRateSchedule
from tba_common.settings import ServiceSettings


class LearnerSettings(ServiceSettings):
    """What defines the machine of a run; the target distribution belongs to its tasks."""

    model: str = Field(
        description="Hugging Face folder or hub id: the policy to start from and the frozen reference; "
        "another one on a second start, and the reference no longer fits what was trained"
    )
    weights_url: str = Field(
        default="runs/weights",
        description="where versions are published: a path, or a file://, s3:// or gs:// URL; generators must see the "
        "same files, or they keep old weights",
    )
    checkpoint_directory: Path = Field(
        default=Path("runs/checkpoints"),
        description="where the optimiser survives a crash; on a disk that dies with the pod, training starts over",
    )
    lora_rank: int = Field(
        default=0,
        ge=0,
        le=512,
        description="0 trains every weight; above, low-rank adapters on all linear layers: versions of megabytes "
        "instead of gigabytes and no second model as reference, at about ten times the learning rate; another value "
        "does not fit the checkpoints there are",
    )
    learning_rate: float = Field(
        default=1e-5, gt=0, le=1, description="peak rate of AdamW; too high and the policy collapses within steps"
    )
    learning_rate_schedule: str = Field(
        default="10",
        description="steps of warm-up, or warm-up/stable/decay such as 50/350/600; without warm-up the first "
        "steps move the policy by the full rate on a guess of the curvature",
    )
    reference: Literal["learner", "scorer"] = Field(
        default="learner",
        description="who computes log pi_ref: a frozen copy beside the policy, or a scorer `reference` in every task's "
        "reward, which saves the copy's memory; without that scorer a task is not trained",
    )
    reset_reference_every: int = Field(
        default=0,
        ge=0,
        description="optimiser steps after which the policy becomes its own reference (rho in arXiv:2503.18929); 0: "
        "never; too small and nothing holds the policy back",
    )
    publish_every: int = Field(
        default=1, ge=1, description="optimiser steps per policy version; large means stale, small means much copying"
    )
    checkpoint_every: int = Field(
        default=10, ge=1, description="optimiser steps between checkpoints; large means many to repeat after a crash"
    )
    keep_versions: int = Field(
        default=20,
        ge=2,
        description="published versions kept on disk; too few, and an evaluation of an older one is dead-lettered",
    )
    max_steps: int = Field(default=0, ge=0, description="finish after this many optimiser steps; 0 goes on for ever")
    micro_batch_tokens: int = Field(
        default=16_384,
        ge=64,
        description="padded tokens per forward pass; changes memory and speed, never the result; too many and the "
        "device runs out of memory",
    )
    device: str = Field(default="auto", description="auto takes CUDA where there is one; a wrong name fails at start")

    @field_validator("learning_rate_schedule")
    @classmethod
    def _readable(cls, value: str) -> str:
        LearningRateSchedule.parse(value)
        return value

    @model_validator(mode="after")
    def _resets_what_is_here(self) -> LearnerSettings:
        if self.reset_reference_every and (self.lora_rank or self.reference == "scorer"):
            raise ValueError("TBA_RESET_REFERENCE_EVERY: expected only with a whole reference in the learner")
        return self
