"""The body of a dead letter as JSON can hold it: decoded where it decodes, else its start as escaped ASCII."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from pydantic import BaseModel

from tba_common.codec import BadMessage, decode

_SHOWN_BYTES: Final = 4_096


def read_body(schema_header: str, body: bytes) -> dict[str, Any]:
    """Return the fields `message`, `body` and `undecodable` of a dead letter."""
    try:
        message = _plain(decode(schema_header, body))
    except BadMessage as error:
        start = body[:_SHOWN_BYTES].decode("ascii", "backslashreplace")
        return {"message": None, "body": start, "undecodable": str(error)}
    return {"message": message, "body": None, "undecodable": None}


def _plain(value: Any) -> Any:
    """JSON has no bytes and no NaN: they become text."""
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value[:_SHOWN_BYTES].decode("ascii", "backslashreplace")
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
