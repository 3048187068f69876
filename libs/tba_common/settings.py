"""The settings every service has; only Settings classes read the environment, as `TBA_<FIELD>`.

A service adds its own fields in its own `settings.py`. A test holds each to fifteen in all.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """Where a process is, and whom it belongs to."""

    model_config = SettingsConfigDict(env_prefix="TBA_", frozen=True, extra="ignore")

    run_id: str = Field(default="main", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    kafka_servers: str = "127.0.0.1:9092"
    health_address: str = Field(
        default="127.0.0.1:0",
        pattern=r"^[^:]+:[0-9]{1,5}$",
        description="host:port of /healthz, /readyz and /metrics; port 0 is any free one, for local runs; "
        "pods bind 0.0.0.0 so that the kubelet can probe",
    )
    log_format: Literal["text", "json"] = "text"


class WorkerSettings(ServiceSettings):
    """A process that shares partitions with its siblings.

    `static`: partition p belongs to process p mod count; needed where the broker's group coordinator does not
    survive kills. `group`: Kafka's group protocol. The wrong one loses no prompt, but leaves partitions unread.
    """

    sharing: Literal["group", "static"] = "group"
    process_index: int = Field(default=0, ge=0)
    process_count: int = Field(default=1, ge=1)
