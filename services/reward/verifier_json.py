"""Is a text JSON of a given schema? The door to jsonschema."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from tba_common.codec import BadMessage


def fits(text: str, schema: dict[str, Any]) -> bool:
    """Say whether a text, white space around it aside, is one JSON value that the schema accepts.

    The dialect is the one that `$schema` names, 2020-12 without it.

    Raises:
        BadMessage: the schema is none, or refers to what it does not hold.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    try:
        return bool(_validator(json.dumps(schema, sort_keys=True)).is_valid(value))
    except Unresolvable as error:
        raise BadMessage(f"json_schema: expected references into itself, got {error}") from error
    except RecursionError:
        return False


@lru_cache(maxsize=64)
def _validator(schema_json: str) -> Validator:
    schema = json.loads(schema_json)
    dialect = validator_for(schema, default=Draft202012Validator)
    try:
        dialect.check_schema(schema)
    except SchemaError as error:
        raise BadMessage(f"json_schema: expected a JSON schema, got one that is wrong: {error.message}") from error
    # An empty registry: without one, a reference to an address would be fetched from there.
    return dialect(schema, registry=Registry())


def _refuse(constant: str) -> NoReturn:
    """NaN and Infinity, which Python reads and JSON does not know."""
    raise ValueError(constant)
