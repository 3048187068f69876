"""The settings of `tba-api`."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator

from services.buffer.database_settings import DatabaseSettings


class ApiSettings(DatabaseSettings):
    """Where the REST API listens, whom it lets in, and what it may read."""

    api_address: str = Field(
        default="127.0.0.1:8000",
        pattern=r"^.+:[0-9]{1,5}$",
        description="host:port to listen on; anything but loopback needs an API key; [::] is every address, of "
        "IPv4 too",
    )
    api_key: SecretStr | None = Field(
        default=None,
        description="every /v1 route wants it as `Authorization: Bearer`; without one, only loopback may ask",
    )
    api_redteam_key: SecretStr | None = Field(
        default=None,
        description="another key, which opens red-team tasks too; without one, nobody who needs a key sees them",
    )
    allow_redteam: bool = Field(
        default=False,
        description="opens red-team tasks to everybody on loopback, where no key is set; others use a key for it",
    )
    data_directory: Path | None = Field(
        default=None, description="JSONL files beneath it may be named as prompts_path; none: prompts come inline only"
    )
    max_body_bytes: int = Field(
        default=32 << 20, ge=1_024, description="larger request bodies are refused before they are parsed"
    )

    @property
    def host(self) -> str:
        """The host of `api_address`, without the brackets of an IPv6 literal."""
        return self.api_address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of `api_address`; 0 takes any free one."""
        return int(self.api_address.rpartition(":")[2])

    @model_validator(mode="after")
    def _open_to_others_only_with_a_key(self) -> Self:
        if self.api_key is not None and not self.api_key.get_secret_value():
            raise ValueError("TBA_API_KEY is empty: expected a key, or the variable unset")
        if self.api_key is None and not is_loopback(self.host):
            raise ValueError(
                f"TBA_API_ADDRESS {self.api_address!r} can be reached from other machines and TBA_API_KEY is not set: "
                "set a key, or listen on 127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _the_second_key_is_another(self) -> Self:
        if self.api_redteam_key is not None:
            second = self.api_redteam_key.get_secret_value()
            if self.api_key is None or second in ("", self.api_key.get_secret_value()):
                raise ValueError("TBA_API_REDTEAM_KEY: expected with TBA_API_KEY, not empty, and another key than that")
        if self.allow_redteam and self.api_key is not None:
            raise ValueError("TBA_ALLOW_REDTEAM: expected where no TBA_API_KEY is set; set TBA_API_REDTEAM_KEY instead")
        return self


def is_loopback(host: str) -> bool:
    """Say whether `host`, a name or an address without brackets, can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
