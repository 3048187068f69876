"""What differs between two machines that generate; what defines the sampling belongs to the task."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from tba_common.settings import WorkerSettings


class GeneratorSettings(WorkerSettings):
    """Settings of `tba-generator`."""

    weights_url: str = Field(
        default="runs/weights",
        description="the learner's published versions: a path, or a file://, s3:// or gs:// URL; anywhere else, the "
        "process waits for weights for ever",
    )
    weights_cache_directory: Path = Field(
        default=Path("runs/weights-cache"),
        description="where versions from s3:// or gs:// lie; needs room for three, and on a disk that dies with the "
        "pod each start downloads again",
    )
    engine: Literal["auto", "vllm", "transformers"] = Field(
        default="auto", description="auto takes vLLM where installed; naming an engine that is not fails at start"
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
    tensor_parallel: int = Field(
        default=1,
        ge=1,
        description="GPUs that hold one copy of the policy together, with vLLM; more than the pod has fails at start",
    )
    cache_bytes: int = Field(
        default=0,
        ge=0,
        description="attention cache of vLLM; 0 takes what a GPU has left, or 1 GiB on a CPU; too little, and "
        "requests wait for one another",
    )
    max_versions_behind: int = Field(
        default=8,
        ge=0,
        description="beyond this many published versions that it does not serve a process is not ready; too small "
        "and it flickers while the learner publishes fast",
    )
    canary_tolerance: float = Field(
        default=0.05,
        gt=0,
        description="nats per token between the learner's log-probabilities and ours after loading; "
        "too small stops healthy processes over rounding, too large lets stale or damaged weights through",
    )
