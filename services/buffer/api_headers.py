"""What every answer carries: the request's id and the headers that keep a browser from trusting too much.

Model output is hostile text: the policy below lets a page run our own files and nothing else.
"""

from __future__ import annotations

import re
import uuid
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class AnswerHeaders:
    """ASGI middleware: gives each request its id, and each answer its headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        came = Headers(scope=scope).get("x-request-id", "")
        scope.setdefault("state", {})["request_id"] = came if _CLIENT_ID.fullmatch(came) else uuid.uuid4().hex

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                secure(MutableHeaders(scope=message), scope)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def request_id(scope: Scope) -> str:
    """The id of the request, as the answer's X-Request-ID says it."""
    return str(scope["state"]["request_id"])


def secure(headers: MutableHeaders, scope: Scope) -> None:
    """Add the id of the request and the security headers; data is never cached."""
    headers["X-Request-ID"] = request_id(scope)
    headers.update(_HEADERS)
    headers.setdefault("Cache-Control", "no-store")
