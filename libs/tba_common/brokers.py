"""Where Kafka is and how one is let in: what every client of the wire needs to connect."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


@dataclass(frozen=True, slots=True)
class Brokers:
    """Bootstrap servers as host:port, comma separated, and the credentials that they ask for.

    Without `ca_file` their certificates are checked against the authorities that the system trusts.
    """

    servers: str
    security_protocol: SecurityProtocol = "PLAINTEXT"
    sasl_mechanism: SaslMechanism = "SCRAM-SHA-512"
    username: str = ""
    password: str = field(default="", repr=False)
    ca_file: Path | None = None

    @classmethod
    def of(cls, brokers: Self | str) -> Self:
        """Take servers alone for brokers that let everybody in."""
        return cls(brokers) if isinstance(brokers, str) else brokers

    @property
    def wants_password(self) -> bool:
        """Whether clients say who they are."""
        return self.security_protocol.startswith("SASL")

    @property
    def encrypts(self) -> bool:
        """Whether the connection is TLS."""
        return self.security_protocol.endswith("SSL")
