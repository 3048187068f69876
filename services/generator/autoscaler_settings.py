"""The settings of `tba-autoscaler`: what it scales, within which limits, and how patient it is."""

from __future__ import annotations

from typing import Self

from pydantic import Field, SecretStr, model_validator

from services.generator.scaling_values import Limits
from tba_common.settings import ServiceSettings


class AutoscalerSettings(ServiceSettings):
    """Settings of `tba-autoscaler`. The signals come from the API, so there is no database here."""

    api_url: str = Field(
        default="http://127.0.0.1:8000",
        pattern=r"^https?://",
        description="where the API is; without it nothing changes",
    )
    api_key: SecretStr | None = Field(default=None, description="the API's key, if it has one")
    deployment: str = Field(
        default="tba-generator",
        description="the Deployment whose replicas follow the learner; another one is left alone",
    )
    namespace: str = Field(default="default", description="where that Deployment and the Lease are")
    lease: str = Field(
        default="tba-autoscaler", description="the Lease that one replica holds; two names would be two deciders"
    )
    lease_seconds: int = Field(
        default=15, ge=2, description="a dead leader is replaced after this; too short and a slow API changes leaders"
    )
    generator_addresses: str = Field(
        default="",
        description="health addresses (host:port, commas between) of all the processes there may be on this machine: "
        "then no cluster is asked, and whoever started us follows what the API says",
    )
    dry_run: bool = Field(
        default=False, description="decide and say so, but change nothing: for KEDA, an HPA, or a first look"
    )
    interval_seconds: float = Field(
        default=10.0, gt=0, description="between two looks; shorter than the signals change brings nothing"
    )
    min_replicas: int = Field(default=1, ge=0, description="while a task is active; 0 starts from cold each time")
    max_replicas: int = Field(
        default=8,
        ge=1,
        description="never more; beyond the partitions of tba.prompts or the GPU quota, pods idle or hang",
    )
    headroom: float = Field(
        default=0.15, ge=0, description="more than demand asks for; 0 starves at every tremble, 1 doubles the cost"
    )
    settle_seconds: float = Field(
        default=120.0, ge=0, description="before a change is judged; shorter than an answer takes, it is judged blind"
    )
    down_after_seconds: float = Field(
        default=600.0, ge=0, description="of surplus before one goes; shorter than a start costs more than it saves"
    )
    zero_after_seconds: float = Field(
        default=900.0, ge=0, description="without a task before all go; shorter, and the next task waits for a start"
    )

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"expected TBA_MIN_REPLICAS <= TBA_MAX_REPLICAS, got {self.min_replicas} and {self.max_replicas}"
            )
        return self

    @property
    def limits(self) -> Limits:
        """What the law is given."""
        return Limits(
            min_replicas=self.min_replicas,
            max_replicas=self.max_replicas,
            headroom=self.headroom,
            settle_seconds=self.settle_seconds,
            down_after_seconds=self.down_after_seconds,
            down_every_seconds=self.down_after_seconds / 5,
            zero_after_seconds=self.zero_after_seconds,
        )
