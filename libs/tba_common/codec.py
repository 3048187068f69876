"""Messages as bytes: msgpack with packed little-endian arrays; schema name and version travel in a header.

Law: `decode(*encode(m)) == m`, and a reader accepts its own schema version and the one before. Within a version it
ignores fields that it does not know, at any depth: so a field that may be ignored comes without a new version, and
one that must not be, because a reader would then do something else, comes with one.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack
import numpy as np
from pydantic import BaseModel, ValidationError

from tba_common.messages import MESSAGES, Message

_ARRAYS: Final = {1: np.dtype("<i4"), 2: np.dtype("<f4")}
_CODES: Final = {dtype: code for code, dtype in _ARRAYS.items()}
_TYPES: Final = {message.__name__.lower(): message for message in MESSAGES}


class BadMessage(Exception):
    """The message itself is at fault: it goes to the dead letters with this reason, and the line moves on."""


def encode(message: Message) -> tuple[str, bytes]:
    """Return the schema header, such as `rollout/1`, and the body."""
    body: bytes = msgpack.packb(_plain(message), default=_pack)
    return f"{type(message).__name__.lower()}/{message.schema_version}", body


def decode(schema: str, body: bytes) -> Message:
    """Read a message back.

    Raises:
        BadMessage: unknown schema, a version this reader does not accept, or a body that does not fit; its reason
            quotes nothing of the body, which may be what a model wrote.
    """
    name, _, version = schema.partition("/")
    expected = _TYPES.get(name)
    if expected is None:
        raise BadMessage(f"unknown schema {schema!r}: expected one of {', '.join(_TYPES)}")
    accepted = [str(v) for v in (expected.schema_version, expected.schema_version - 1) if v > 0]
    if version not in accepted:
        raise BadMessage(f"schema {schema!r}: this reader accepts versions {' and '.join(accepted)} of {name}")
    try:
        fields = msgpack.unpackb(body, ext_hook=_unpack, strict_map_key=False)
        return expected.model_validate(fields, extra="ignore")
    except (ValidationError, ValueError, OverflowError, msgpack.UnpackException, TypeError) as error:
        raise BadMessage(f"{schema} does not decode: {_short(error)}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _pack(value: Any) -> msgpack.ExtType:
    if isinstance(value, np.ndarray) and value.dtype in _CODES:
        return msgpack.ExtType(_CODES[value.dtype], value.tobytes())
    raise TypeError(f"cannot put {type(value).__name__} on the wire")


def _unpack(code: int, data: bytes) -> Any:
    if code not in _ARRAYS:
        raise ValueError(f"unknown array code {code}")
    return np.frombuffer(data, dtype=_ARRAYS[code])


def _short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error) or type(error).__name__
