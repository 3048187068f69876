"""The REST API: the way tasks come in and everything else can be seen. Stateless: run as many as you like.

It writes tasks, prompts and evaluation requests to PostgreSQL; the buffer service reads them there. It never
talks to Kafka, so it accepts tasks while the line is down.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Final

import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import OperationalError
from starlette.concurrency import run_in_threadpool

from services.buffer import (
    api_autoscaler,
    api_dead_letters,
    api_gradings,
    api_health,
    api_prompts,
    api_reads,
    api_rescores,
    api_seeds,
    api_status,
    api_tasks,
    api_trajectories,
    dashboard,
    problems,
)
from services.buffer.api_context import open_context
from services.buffer.api_guard import BodyLimit, Guard
from services.buffer.api_headers import AnswerHeaders
from services.buffer.api_openapi import DescribedApi
from services.buffer.api_settings import ApiSettings
from tba_common.lifecycle import Lifecycle
from tba_common.listening import EVERYWHERE, listen

log = logging.getLogger(__name__)

_CHECK_SECONDS: Final = 5
_GRACE_SECONDS: Final = 20
_DESCRIPTION: Final = """\
Post tasks to a live run and watch it learn. Errors are `application/problem+json` (RFC 9457) and name the field,
what was expected and what came. An `Idempotency-Key` makes a retry of any POST or DELETE safe for 24 hours."""


def create_app(settings: ApiSettings) -> FastAPI:
    """Build the application; it connects to the database with the first request that needs it."""
    context = open_context(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        context.engine.dispose()

    app = DescribedApi(
        title="TBA",
        summary="Asynchronous reinforcement learning for language models with Trajectory Balance",
        description=_DESCRIPTION,
        version=version("tba"),
        lifespan=lifespan,
        docs_url=None,  # both load scripts from elsewhere, which the page's policy forbids
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    for module in (
        *(api_tasks, api_prompts, api_seeds, api_rescores, api_gradings),
        *(api_status, api_reads, api_trajectories, api_dead_letters, api_autoscaler, api_health),
    ):
        app.include_router(module.router)
    dashboard.install(app)
    problems.install(app)
    # The last one added is the first one met.
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(AnswerHeaders)
    return app


def main() -> None:
    """Serve until SIGTERM or SIGINT; requests in flight are answered first."""
    settings = ApiSettings.from_environment()
    with Lifecycle("tba-api", settings) as life:
        for chatty in ("uvicorn", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        app = create_app(settings)

        async def look() -> None:
            life.beat()
            life.ready(*await run_in_threadpool(_is_ready, app))

        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            callback_notify=look,
            timeout_notify=_CHECK_SECONDS,
        )
        log.info("listening", extra={"address": settings.api_address, "key": settings.api_key is not None})
        # Of every address, asyncio would take those of IPv6 alone.
        everywhere = [listen(settings.host, settings.port)] if settings.host == EVERYWHERE else None
        uvicorn.Server(config).run(sockets=everywhere)


def _is_ready(app: FastAPI) -> tuple[bool, str]:
    try:
        api_health.check_schema(app.state.context)
    except problems.Problem as problem:
        return False, problem.detail
    except OperationalError:
        return False, "PostgreSQL does not answer"
    return True, ""
