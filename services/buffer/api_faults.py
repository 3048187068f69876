"""From pydantic's errors to ours: a pointer to the field, what was expected there, what came."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

_NOTHING: Final = "nothing"
_MAX_GOT_CHARACTERS: Final = 120


class FieldError(BaseModel):
    """One fault of a request."""

    model_config = ConfigDict(frozen=True)

    field: str = Field(examples=["/reward/0/scorer"])
    expected: str = Field(examples=["one of verifier"])
    got: str = Field(examples=['"verifer"'])


def shown(value: Any) -> str:
    """Render what came: JSON in ASCII, cut short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= _MAX_GOT_CHARACTERS else f"{text[:_MAX_GOT_CHARACTERS]}..."


def body_errors(
    errors: Sequence[Mapping[str, Any]], schema: Mapping[str, Any], *, prefix: str = ""
) -> list[FieldError]:
    """Translate the errors of a body under the JSON pointer `prefix`; `schema` is its JSON schema."""
    return [
        FieldError(field=prefix + pointer(error["loc"]), expected=_expected(error, schema), got=_got(error))
        for error in errors
        if not _is_echo(error)
    ]


def parameter_errors(errors: Sequence[Mapping[str, Any]]) -> list[FieldError]:
    """Translate the errors of query, path and header parameters."""
    return [
        FieldError(field=":".join(map(str, error["loc"])), expected=_expected(error, {}), got=_got(error))
        for error in errors
    ]


def pointer(location: Sequence[str | int]) -> str:
    """Write a location as a JSON pointer (RFC 6901)."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in location)


def _is_echo(error: Mapping[str, Any]) -> bool:
    # A tuple whose only items are invalid is also reported as too short.
    return bool(error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"])


def _got(error: Mapping[str, Any]) -> str:
    return _NOTHING if error["type"] == "missing" else shown(error["input"])


def _expected(error: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if error["type"] == "missing":
        return "a value"
    if error["type"] == "extra_forbidden":
        known = ", ".join(_known_fields(schema, error["loc"][:-1]))
        return f"no field of this name; known fields: {known}" if known else "no parameter of this name"
    message = str(error["msg"]).removeprefix("Value error, ")
    if match := re.fullmatch(r"\w+ should (?:be |have )?(.+?)(?: after validation)?(?:, not \d+)?", message):
        return match[1]
    return message.rpartition(": expected ")[2]


def _known_fields(schema: Mapping[str, Any], location: Sequence[str | int]) -> list[str]:
    node = _resolved(schema, schema)
    for part in location:
        step = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
        node = _resolved(step, schema)
    return list(node.get("properties", ()))


def _resolved(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    for option in node.get("anyOf", ()):
        if "$ref" in option:
            return _resolved(option, schema)
    if "$ref" in node:
        target: Mapping[str, Any] = schema["$defs"][node["$ref"].rpartition("/")[2]]
        return target
    return node
