"""What differs between two machines that generate; what defines the sampling belongs to the task."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from tba_common.settings import WorkerSettings


class GeneratorSettings(WorkerSettings):
    """Settings of `tba-generator`."""

    weights_directory: Path = Field(
        default=Path("runs/weights"),
        description="the learner's published versions; anywhere else, the process waits for weights for ever",
    )
    engine: Literal["auto", "transformers"] = Field(
        default="auto", description="auto takes the fastest engine installed; naming one that is not fails at start"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto takes CUDA where found; cpu on a GPU machine is many times slower"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="auto is bfloat16 on CUDA and float32 on CPU; bfloat16 moves log-probabilities by about 0.01 "
        "nats a token, float32 doubles memory",
    )
    max_batch_completions: int = Field(
        default=256,
        ge=1,
        description="completions sampled at once; too many run out of memory when they grow long, "
        "too few leave the device idle",
    )
    canary_tolerance: float = Field(
        default=0.05,
        gt=0,
        description="nats per token between the learner's log-probabilities and ours after loading; "
        "too small stops healthy processes over rounding, too large lets stale or damaged weights through",
    )
