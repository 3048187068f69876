"""For machines that watch machines: alive, ready, metrics, version."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from services.buffer.api_context import Context, Shared
from services.buffer.api_views import View
from services.buffer.migrations import SchemaError, require_head
from services.buffer.problems import Problem
from tba_common import metrics

router: Final = APIRouter(tags=["health"])
_EXPOSITION: Final = "text/plain; version=1.0.0; charset=utf-8"


class Health(View):
    """A process that answers."""

    status: Literal["alive", "ready"]


class Version(View):
    """What runs here."""

    version: str = Field(examples=["0.1.0"])
    api: Literal["v1"] = "v1"
    run_id: str = Field(examples=["main"])


@router.get("/healthz", operation_id="getHealth")
def get_health() -> Health:
    """Say that the process answers; it does not look at the database."""
    return Health(status="alive")


@router.get("/readyz", operation_id="getReadiness")
def get_readiness(context: Shared) -> Health:
    """Say that the database answers and has the schema this version needs."""
    check_schema(context)
    return Health(status="ready")


@router.get("/metrics", operation_id="getMetrics", response_class=Response)
def get_metrics() -> Response:
    """Prometheus metrics of this process."""
    return Response(metrics.exposition("tba-api"), media_type=_EXPOSITION)


@router.get("/version", operation_id="getVersion")
def get_version(context: Shared) -> Version:
    """Name the version of the platform and the run."""
    return Version(version=version("tba"), run_id=context.run_id)


def check_schema(context: Context) -> None:
    """Compare the database's schema with the newest migration.

    Raises:
        Problem: another one, or none.
        OperationalError: the database cannot be reached.
    """
    try:
        require_head(context.engine)
    except SchemaError as error:
        raise Problem("schema-differs", detail=str(error), headers={"Retry-After": "5"}) from error
