"""The settings of `tba-reward-judge`: which model judges, and which addresses may be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from services.reward.judge_address import origin_of
from services.reward.settings import RewardSettings


class JudgeSettings(RewardSettings):
    """The endpoint of a judge. A task says what a good answer is, never where its text is sent."""

    # A URL may hold a password: no validation error repeats it.
    model_config = SettingsConfigDict(hide_input_in_errors=True)

    judge_url: str = Field(
        description="base URL of an OpenAI-compatible API, such as https://api.openai.com/v1; prompts and completions "
        "are sent there"
    )
    judge_model: str = Field(min_length=1, description="model that judges, by the endpoint's name for it")
    judge_allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        min_length=1,
        description="scheme://host[:port] by comma; a judge_url elsewhere is refused, so that whoever may change "
        "the one cannot send prompts to a place that this list does not have",
    )
    judge_private_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="hosts by comma that may have private addresses and plain http, such as a service of the "
        "cluster; any other name that leads to such an address is refused",
    )
    judge_api_key: SecretStr | None = Field(
        default=None, description="sent as `Authorization: Bearer`; a file keeps it out of the environment"
    )
    judge_api_key_file: Path | None = Field(default=None, description="file that holds the key, in place of the key")
    judge_requests: int = Field(
        default=8,
        ge=1,
        le=256,
        description="requests at once; more than the endpoint takes are answered 429 and asked again",
    )
    judge_timeout_seconds: float = Field(
        default=60.0, gt=0, le=600, description="for one request; too short asks again what was nearly answered"
    )
    judge_max_tokens: int = Field(
        default=512, ge=32, le=32_768, description="of one verdict with its reason; one that is cut off is no verdict"
    )
    judge_canary_seconds: float = Field(
        default=600.0,
        gt=0,
        description="between two checks of the judge with answers of known worth; long trusts a model that was "
        "exchanged behind its name, short pays for more requests",
    )

    @field_validator("judge_allowed_origins", "judge_private_hosts", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _goes_where_it_may(self) -> Self:
        origin = origin_of(self.judge_url)
        if origin not in {origin_of(allowed) for allowed in self.judge_allowed_origins}:
            allowed = ", ".join(self.judge_allowed_origins)
            raise ValueError(
                f"TBA_JUDGE_URL: expected an origin of TBA_JUDGE_ALLOWED_ORIGINS ({allowed}), got {origin}"
            )
        if origin.scheme == "http" and origin.host not in self.judge_private_hosts:
            raise ValueError(f"TBA_JUDGE_URL: expected https, or {origin.host} in TBA_JUDGE_PRIVATE_HOSTS, got http")
        if self.judge_api_key is not None and self.judge_api_key_file is not None:
            raise ValueError("expected one of TBA_JUDGE_API_KEY and TBA_JUDGE_API_KEY_FILE, got both")
        return self

    def api_key(self) -> str | None:
        """Return the key, wherever it is kept.

        Raises:
            OSError: its file cannot be read.
        """
        if self.judge_api_key_file is not None:
            return self.judge_api_key_file.read_text().strip()
        return None if self.judge_api_key is None else self.judge_api_key.get_secret_value()
