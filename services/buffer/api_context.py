"""What the routes share: the pool of database connections and the settings, reached as the parameter `context`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Request
from sqlalchemy import Engine, create_engine

from services.buffer.api_settings import ApiSettings

#: A query that hangs, or a lock that is not given, ends as a 503 and not as a thread that is lost.
_SESSION: Final = "-c statement_timeout=30s -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s"


@dataclass(frozen=True)
class Context:
    """One per process."""

    engine: Engine
    settings: ApiSettings

    @property
    def run_id(self) -> str:
        """The run that this deployment trains."""
        return self.settings.run_id


def open_context(settings: ApiSettings) -> Context:
    """Prepare the pool; no connection is made until the first request needs one."""
    engine = create_engine(
        settings.database_url,
        pool_size=10,
        max_overflow=0,
        pool_timeout=5,
        pool_pre_ping=True,
        connect_args={"connect_timeout": 5, "options": _SESSION, "application_name": "tba-api"},
    )
    return Context(engine, settings)


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Shared = Annotated[Context, Depends(_context)]
