"""Every refusal of the API as `application/problem+json` (RFC 9457): what was wrong, what was expected, what came.

`errors` names each fault by field: a JSON pointer into the body ("" is all of it), else `query:`, `path:` or
`header:` and a name. `got` is a short JSON rendering in ASCII, so that hostile input cannot forge a log line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from psycopg.errors import UndefinedColumn, UndefinedTable
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from services.buffer.api_faults import FieldError, parameter_errors, shown
from services.buffer.api_headers import request_id, secure

MEDIA_TYPE: Final = "application/problem+json"
_MAX_ERRORS: Final = 20
_RETRY_SECONDS: Final = 5

#: Code -> HTTP status and title. The code is the stable part: `type` is `urn:tba:problem:<code>`.
KINDS: Final[Mapping[str, tuple[HTTPStatus, str]]] = {
    "malformed-body": (HTTPStatus.BAD_REQUEST, "The body is not well-formed JSON"),
    "unauthorized": (HTTPStatus.UNAUTHORIZED, "A valid API key is needed"),
    "foreign-origin": (HTTPStatus.FORBIDDEN, "The request comes from another site"),
    "redteam-forbidden": (HTTPStatus.FORBIDDEN, "Red-team tasks need a permission of their own"),
    "not-found": (HTTPStatus.NOT_FOUND, "There is no such thing"),
    "method-not-allowed": (HTTPStatus.METHOD_NOT_ALLOWED, "This path does not know the method"),
    "task-exists": (HTTPStatus.CONFLICT, "A task of this name exists"),
    "key-conflict": (HTTPStatus.CONFLICT, "A prompt key names another prompt"),
    "not-evaluable": (HTTPStatus.CONFLICT, "There is nothing to evaluate yet"),
    "request-in-progress": (HTTPStatus.CONFLICT, "A request with this Idempotency-Key is still being answered"),
    "not-replayable": (HTTPStatus.CONFLICT, "This dead letter cannot be replayed"),
    "rescore-exists": (HTTPStatus.CONFLICT, "The task is being scored again already"),
    "body-too-large": (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large"),
    "unsupported-media-type": (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body's type is not understood here"),
    "invalid-request": (HTTPStatus.UNPROCESSABLE_ENTITY, "The request does not fit"),
    "idempotency-key-reused": (HTTPStatus.UNPROCESSABLE_ENTITY, "The Idempotency-Key came with another body before"),
    "grading-failed": (HTTPStatus.FAILED_DEPENDENCY, "A scorer could not grade this"),
    "internal-error": (HTTPStatus.INTERNAL_SERVER_ERROR, "The server failed"),
    "database-unavailable": (HTTPStatus.SERVICE_UNAVAILABLE, "The database cannot be reached"),
    "schema-differs": (HTTPStatus.SERVICE_UNAVAILABLE, "The database has another schema"),
    "no-decision": (HTTPStatus.SERVICE_UNAVAILABLE, "No autoscaler has decided lately"),
    "grading-not-ready": (HTTPStatus.GATEWAY_TIMEOUT, "The scorers have not answered yet"),
}


class ProblemDetails(BaseModel):
    """The body of every answer that is not a success (RFC 9457)."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(examples=["urn:tba:problem:invalid-request"])
    title: str = Field(examples=["The request does not fit"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["/reward/0/scorer: expected one of verifier"])
    instance: str = Field(examples=["/v1/tasks"])
    request_id: str = Field(examples=["5f0c9a6e0d1b4b0e8c7d"])
    errors: tuple[FieldError, ...]


class Problem(HTTPException):
    """Raise it anywhere below a route; `code` is one of KINDS, `detail` defaults to the first error as a sentence."""

    def __init__(
        self,
        code: str,
        *errors: FieldError,
        detail: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.code = code
        self.errors = errors[:_MAX_ERRORS]
        status, _ = KINDS[code]
        super().__init__(status, detail or _sentence(errors), dict(headers or {}))


def response(problem: Problem, scope: Scope) -> Response:
    """The answer that tells `problem` about the request of `scope`."""
    status, title = KINDS[problem.code]
    details = ProblemDetails(
        type=f"urn:tba:problem:{problem.code}",
        title=title,
        status=status,
        detail=problem.detail,
        instance=scope["path"],
        request_id=request_id(scope),
        errors=problem.errors,
    )
    return JSONResponse(details.model_dump(), status, headers=dict(problem.headers or {}), media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every error of `app` as a problem."""
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_parameters)
    for unreachable in (OperationalError, InterfaceError, PoolTimeoutError):
        app.add_exception_handler(unreachable, _on_database)
    app.add_exception_handler(ProgrammingError, _on_schema)
    app.add_exception_handler(Exception, _on_crash)


def _sentence(errors: Iterable[FieldError]) -> str:
    listed = list(errors)
    if not listed:
        return ""
    more = f" (and {len(listed) - 1} more; at most {_MAX_ERRORS} are listed)" if len(listed) > 1 else ""
    return f"{listed[0].field or 'the body'}: expected {listed[0].expected}, got {listed[0].got}{more}"


async def _on_http(request: Request, error: Exception) -> Response:
    if isinstance(error, Problem):
        return response(error, request.scope)
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(_methods(request))
        fault = FieldError(field="method", expected=allowed, got=shown(request.method))
        return response(Problem("method-not-allowed", fault, headers={"Allow": allowed}), request.scope)
    fault = FieldError(field="path", expected="a path listed in /openapi.json", got=shown(request.url.path))
    return response(Problem("not-found", fault), request.scope)


def _methods(request: Request) -> list[str]:
    """The methods of the path: each is a route of its own, so the router knows only those of the first."""
    for template, operations in request.app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), request.url.path):
            return sorted(method.upper() for method in operations)
    return ["GET"]  # the page and its files


async def _on_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return response(Problem("invalid-request", *parameter_errors(error.errors())), request.scope)


async def _on_database(request: Request, error: Exception) -> Response:
    headers = {"Retry-After": str(_RETRY_SECONDS)}
    detail = f"PostgreSQL does not answer or is too busy; nothing was changed: try again in {_RETRY_SECONDS} s"
    return response(Problem("database-unavailable", detail=detail, headers=headers), request.scope)


async def _on_schema(request: Request, error: Exception) -> Response:
    if not isinstance(getattr(error, "orig", None), UndefinedTable | UndefinedColumn):
        raise error
    headers = {"Retry-After": str(_RETRY_SECONDS)}
    detail = "the database lacks a table or column of this version: run `python -m services.buffer migrate`"
    return response(Problem("schema-differs", detail=detail, headers=headers), request.scope)


async def _on_crash(request: Request, error: Exception) -> Response:
    # Runs outside the middleware that adds these headers, and the error is raised again for the log afterwards.
    detail = f"the log has the cause under request_id {request_id(request.scope)}"
    answer = response(Problem("internal-error", detail=detail), request.scope)
    secure(answer.headers, request.scope)
    return answer
