"""Who may ask, and how much they may send: decided before a route is looked up or a body is read.

Deny by default: with a key, everything but the paths in OPEN wants it. Without one the API listens on loopback
only, and then answers only to a loopback Host, which a web site cannot send by pointing its name at 127.0.0.1.
"""

from __future__ import annotations

import hmac
from typing import Final
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.buffer.api_faults import FieldError, shown
from services.buffer.api_settings import ApiSettings, is_loopback
from services.buffer.problems import Problem, response

#: Probes, the API's description, and the page with its files, which hold no data: the page asks for the key itself.
OPEN: Final = frozenset({"/", "/healthz", "/readyz", "/version", "/openapi.json", "/favicon.ico"})
_OPEN_FILES: Final = "/static/"
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """ASGI middleware: the keys, the Host and the Origin. Leaves `may_redteam` in the state of a request."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self.app = app
        self.key = _bytes(settings.api_key)
        self.redteam_key = _bytes(settings.api_redteam_key)
        self.allow_redteam = settings.allow_redteam

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._refusal(scope) if scope["type"] == "http" else None
        if problem is None:
            await self.app(scope, receive, send)
        else:
            await response(problem, scope)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.key is None and not is_loopback(_name(host)):
            return _foreign("header:Host", "a name of this machine such as 127.0.0.1", host)
        if scope["method"] not in _READING and origin is not None and not _is_ours(origin, host):
            return _foreign("header:Origin", f"this server ({host}) or none", origin)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        came = key.encode("latin-1") if scheme.lower() == "bearer" else b""  # the bytes that were sent
        has_second = self.redteam_key is not None and hmac.compare_digest(came, self.redteam_key)
        scope.setdefault("state", {})["may_redteam"] = has_second or (self.key is None and self.allow_redteam)
        if self.key is None or scope["path"] in OPEN or scope["path"].startswith(_OPEN_FILES):
            return None
        if has_second or hmac.compare_digest(came, self.key):
            return None
        # What came is not repeated: it may be the key, put wrongly.
        got = "something else" if "authorization" in headers else "nothing"
        fault = FieldError(field="header:Authorization", expected="Bearer and the API key", got=got)
        return Problem("unauthorized", fault, headers={"WWW-Authenticate": "Bearer"})


class BodyLimit:
    """ASGI middleware: stops reading a body past `max_bytes`, declared by Content-Length or sent in chunks."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            if declared.isdecimal() and int(declared) > self.max_bytes:
                raise self._too_large(f"{int(declared)} bytes")
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise self._too_large(f"more than {self.max_bytes} bytes")
            return message

        await self.app(scope, receive_within_limit, send)

    def _too_large(self, got: str) -> Problem:
        fault = FieldError(field="", expected=f"at most {self.max_bytes} bytes", got=got)
        return Problem("body-too-large", fault, headers={"Connection": "close"})


def _bytes(key: SecretStr | None) -> bytes | None:
    return None if key is None else key.get_secret_value().encode()


def _foreign(field: str, expected: str, got: str) -> Problem:
    return Problem("foreign-origin", FieldError(field=field, expected=expected, got=shown(got)))


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # half an IPv6 address
        return ""


def _is_ours(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False
