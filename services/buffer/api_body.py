"""Bodies, read strictly: the declared type, well-formed JSON, the exact types, and nothing PostgreSQL cannot hold.

JSON admits what we cannot store or mean: 1e999, integers of a thousand digits, the character NUL. They are
refused here with a pointer to the place, also inside free-form objects that no model looks into.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from functools import cached_property
from typing import Annotated, Any, Final, Generic, TypeVar

from fastapi import Depends, Request
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from services.buffer.api_faults import FieldError, body_errors, pointer, shown
from services.buffer.problems import Problem

T = TypeVar("T")

JSON_TYPE: Final = "application/json"
NDJSON_TYPE: Final = "application/x-ndjson"
_LARGEST_INTEGER: Final = 2**63


@dataclass(frozen=True)
class RawBody:
    """The bytes that came, and what they were said to be."""

    content: bytes
    media_type: str | None

    @cached_property
    def sha256(self) -> bytes:
        """The digest by which a retry is known."""
        return hashlib.sha256(self.content).digest()


async def _raw_body(request: Request) -> RawBody:
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        fault = FieldError(field="header:Content-Encoding", expected="identity", got=shown(encoding))
        raise Problem("unsupported-media-type", fault)
    declared = "content-type" in request.headers
    return RawBody(await request.body(), header.get_content_type() if declared else None)


Raw = Annotated[RawBody, Depends(_raw_body)]


class Reader(Generic[T]):
    """Reads one kind of value from bodies."""

    def __init__(self, kind: type[T]) -> None:
        self._adapter = TypeAdapter(kind)
        self._schema = self._adapter.json_schema()

    def json(self, raw: RawBody) -> T:
        """Read a JSON body.

        Raises:
            Problem: another media type, malformed JSON, or a value that does not fit.
        """
        expect_type(raw, JSON_TYPE)
        value, errors = self.parse(raw.content)
        if errors:
            raise Problem("invalid-request", *errors)
        assert value is not None
        return value

    def parse(self, content: bytes, prefix: str = "") -> tuple[T | None, list[FieldError]]:
        """Read one JSON document; give the value, or else its errors under the JSON pointer `prefix`.

        Raises:
            Problem: malformed JSON.
        """
        plain = _well_formed(content, prefix)
        unstorable = [
            FieldError(field=prefix + pointer(place), expected=expected, got=got)
            for place, expected, got in _unstorable(plain, ())
        ]
        if unstorable:
            return None, unstorable
        try:
            return self._adapter.validate_json(content, strict=True), []
        except ValidationError as error:
            return None, body_errors(error.errors(include_url=False), self._schema, prefix=prefix)


def expect_type(raw: RawBody, *accepted: str) -> None:
    """Refuse a body that does not say it is one of `accepted`.

    Raises:
        Problem: it says something else, or nothing.
    """
    if raw.media_type not in accepted:
        got = "nothing" if raw.media_type is None else shown(raw.media_type)
        fault = FieldError(field="header:Content-Type", expected=" or ".join(accepted), got=got)
        raise Problem("unsupported-media-type", fault, headers={"Accept-Post": ", ".join(accepted)})


def _well_formed(content: bytes, prefix: str) -> Any:
    try:
        return from_json(content, allow_inf_nan=False)
    except ValueError as error:
        fault = FieldError(field=prefix, expected="one JSON document (RFC 8259) in UTF-8", got=str(error))
        raise Problem("malformed-body", fault) from error


def _unstorable(value: Any, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            if "\0" in name:
                yield place, "field names without the character U+0000", shown(name)
            yield from _unstorable(item, (*place, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unstorable(item, (*place, index))
    elif isinstance(value, str) and "\0" in value:
        yield place, "text without the character U+0000", shown(value)
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, "a finite number", json.dumps(value)
    elif isinstance(value, int) and abs(value) >= _LARGEST_INTEGER:
        yield place, "an integer below 2^63", "a larger one"
