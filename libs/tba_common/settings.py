"""The settings every service has; only Settings classes read the environment, as `TBA_<FIELD>`.

A service adds its own fields in its own `settings.py`. A test holds each to fifteen in all.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tba_common.brokers import Brokers, SaslMechanism, SecurityProtocol
from tba_common.tasks import SCORER_KINDS, is_scorer_name

#: How a process ends whose settings are wrong: another start would not help.
WRONG_SETTINGS: Final = 2


class ServiceSettings(BaseSettings):
    """Where a process is, and whom it belongs to."""

    model_config = SettingsConfigDict(env_prefix="TBA_", frozen=True, extra="ignore")

    run_id: str = Field(default="main", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    kafka_servers: str = "127.0.0.1:9092"
    kafka_security_protocol: SecurityProtocol = "PLAINTEXT"
    kafka_sasl_mechanism: SaslMechanism = "SCRAM-SHA-512"
    kafka_username: str = ""
    kafka_password: SecretStr = SecretStr("")
    kafka_ca_file: Path | None = Field(
        default=None, description="who signed the brokers' certificates; none: the authorities that the system trusts"
    )
    health_address: str = Field(
        default="127.0.0.1:0",
        pattern=r"^([^:]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$",
        description="host:port of /healthz, /readyz and /metrics; port 0 is any free one, for local runs; "
        "pods listen on [::], which is IPv4 too, so that the kubelet can probe",
    )
    grace_seconds: float = Field(
        default=25.0,
        gt=0,
        description="from SIGTERM to the end, whatever is left; must stay below what the orchestrator waits (30 on "
        "Kubernetes by default), or work is cut off instead of handed back",
    )
    scorers: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("verifier",),
        min_length=1,
        description="the scorers of this deployment, by comma: their topics are made, and a task may name no other; "
        "one that has no process holds its rollouts up for ever",
    )
    log_format: Literal["text", "json"] = "text"

    @field_validator("scorers", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("scorers")
    @classmethod
    def _known(cls, scorers: tuple[str, ...]) -> tuple[str, ...]:
        for scorer in scorers:
            if not is_scorer_name(scorer):
                raise ValueError(
                    f"{scorer!r}: expected one of {', '.join(SCORER_KINDS)}, or such a name with .instance"
                )
        return scorers

    @model_validator(mode="after")
    def _says_who_it_is(self) -> Self:
        if self.brokers.wants_password and not (self.kafka_username and self.kafka_password.get_secret_value()):
            protocol = self.kafka_security_protocol
            raise ValueError(f"TBA_KAFKA_SECURITY_PROTOCOL={protocol} needs TBA_KAFKA_USERNAME and TBA_KAFKA_PASSWORD")
        return self

    @property
    def brokers(self) -> Brokers:
        """Where Kafka is and how it lets this process in."""
        return Brokers(
            self.kafka_servers,
            security_protocol=self.kafka_security_protocol,
            sasl_mechanism=self.kafka_sasl_mechanism,
            username=self.kafka_username,
            password=self.kafka_password.get_secret_value(),
            ca_file=self.kafka_ca_file,
        )

    @classmethod
    def from_environment(cls) -> Self:
        """Read the environment.

        Raises:
            SystemExit: a setting is wrong; its code is WRONG_SETTINGS, and stderr has one line for each fault.
        """
        try:
            return cls()
        except ValidationError as error:
            is_secret = cls.model_config.get("hide_input_in_errors", False)
            for fault in error.errors():
                name = "".join(f"TBA_{part}: ".upper() for part in fault["loc"][:1])
                got = f", got {fault['input']!r}" if name and not is_secret and fault["type"] != "missing" else ""
                sys.stderr.write(f"{name}{fault['msg'].removeprefix('Value error, ')}{got}\n")
            raise SystemExit(WRONG_SETTINGS) from None


class WorkerSettings(ServiceSettings):
    """A process that shares partitions with its siblings.

    `static`: partition p belongs to process p mod count; needed where the broker's group coordinator does not
    survive kills (`sharing.py`, also for a count that changes). `group`: Kafka's group protocol. The wrong one loses
    no prompt, but leaves partitions unread.
    """

    sharing: Literal["group", "static"] = "group"
    process_index: int = Field(default=0, ge=0)
    process_count: int = Field(default=1, ge=1)
    process_count_file: Path | None = None  # static: read again and again in place of the count
