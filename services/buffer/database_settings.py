"""Where the database is: what the buffer and the API have in common."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tba_common.settings import ServiceSettings


class DatabaseSettings(ServiceSettings):
    """The settings of every process of this room."""

    # The URL may hold a password: no validation error repeats it.
    model_config = SettingsConfigDict(hide_input_in_errors=True)

    database_url: str = Field(
        default="postgresql+psycopg://postgres@127.0.0.1:5432/tba",
        repr=False,
        description="SQLAlchemy URL of the PostgreSQL that holds the run; another one is another, empty run",
    )
