"""A retry that does nothing twice: the answer is stored under its Idempotency-Key in the transaction that did the work.

The key is claimed by an insert before the work starts, so a concurrent request with the same key waits on the
row until the first one commits, and then repeats its answer. A failed request rolls its claim back: it did
nothing, and a retry runs anew. (draft-ietf-httpapi-idempotency-key-header-06)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Request
from fastapi.responses import Response
from psycopg.errors import LockNotAvailable
from pydantic import BaseModel
from sqlalchemy import Connection, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError

from services.buffer.api_body import Raw
from services.buffer.api_context import Context, Shared
from services.buffer.api_faults import FieldError, shown
from services.buffer.problems import Problem
from services.buffer.request_tables import idempotency_keys as keys

REPLAYED: Final = "Idempotency-Replayed"
_LIFETIME: Final = text("interval '24 hours'")
_WAIT: Final = text("SET LOCAL lock_timeout = '2s'")
_WAIT_AS_BEFORE: Final = text("SET LOCAL lock_timeout TO DEFAULT")
_SWEPT_AT_ONCE: Final = 100

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="a name of the client's choice for this request, such as a UUID; "
        "for 24 hours a repetition gets the first answer again",
    ),
]


@dataclass(frozen=True)
class Answer:
    """What a successful request is told."""

    status: HTTPStatus
    body: BaseModel | None = None
    location: str | None = None


@dataclass(frozen=True)
class Once:
    """One request that changes something, and the key under which it happens once."""

    context: Context
    key: str | None
    request: str  # method and path
    sha256: bytes

    def answer(self, work: Callable[[Connection], Answer]) -> Response:
        """Do `work` and store its answer in one transaction, or repeat the answer of the first time.

        Raises:
            Problem: the key came with another body, or its first request is still running.
        """
        with self.context.engine.begin() as connection:
            if self.key is None:
                return _response(_stored_form(work(connection)))
            if not self._claim(connection):
                return self._replay(connection)
            stored = _stored_form(work(connection))
            self._store(connection, stored)
        return _response(stored)

    def _claim(self, connection: Connection) -> bool:
        claim = insert(keys).values(key=self.key, request=self.request, body_sha256=self.sha256, status=0, response={})
        fresh = claim.on_conflict_do_update(
            index_elements=[keys.c.key, keys.c.request],
            set_={"body_sha256": claim.excluded.body_sha256, "created_at": func.now()},
            where=keys.c.created_at < func.now() - _LIFETIME,
        ).returning(keys.c.key)
        try:
            connection.execute(_WAIT)
            claimed = connection.execute(fresh).first() is not None
            connection.execute(_WAIT_AS_BEFORE)
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable):
                raise
            fault = FieldError(field="header:Idempotency-Key", expected="a request that has ended", got=shown(self.key))
            raise Problem("request-in-progress", fault, headers={"Retry-After": "5"}) from error
        return claimed

    def _replay(self, connection: Connection) -> Response:
        row = connection.execute(
            select(keys.c.body_sha256, keys.c.response).where(keys.c.key == self.key, keys.c.request == self.request)
        ).one()
        if row.body_sha256 != self.sha256:
            fault = FieldError(
                field="header:Idempotency-Key",
                expected="a new key, or the body that came with this one first",
                got=f"{shown(self.key)} with another body",
            )
            raise Problem("idempotency-key-reused", fault)
        answer = _response(row.response)
        answer.headers[REPLAYED] = "true"
        return answer

    def _store(self, connection: Connection, stored: dict[str, Any]) -> None:
        mine = (keys.c.key == self.key) & (keys.c.request == self.request)
        connection.execute(update(keys).where(mine).values(status=stored["status"], response=stored))
        expired = (
            select(keys.c.key, keys.c.request)
            .where(keys.c.created_at < func.now() - _LIFETIME)
            .limit(_SWEPT_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        swept = expired.subquery()
        connection.execute(delete(keys).where(keys.c.key == swept.c.key, keys.c.request == swept.c.request))


def _once(request: Request, context: Shared, raw: Raw, key: Key = None) -> Once:
    return Once(context, key, f"{request.method} {request.url.path}", raw.sha256)


OnlyOnce = Annotated[Once, Depends(_once)]


def _stored_form(answer: Answer) -> dict[str, Any]:
    # As text: a replay is the same bytes, and JSONB would sort the fields.
    body = None if answer.body is None else answer.body.model_dump_json()
    return {"status": int(answer.status), "location": answer.location, "body": body}


def _response(stored: dict[str, Any]) -> Response:
    headers = {} if stored["location"] is None else {"Location": stored["location"]}
    media_type = None if stored["body"] is None else "application/json"
    return Response(stored["body"], stored["status"], headers=headers, media_type=media_type)
