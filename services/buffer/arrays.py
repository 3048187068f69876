"""Many rows in one statement: a parameter per column, so that a statement has one shape at any size; and COPY."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any
from typing import cast as cast_type

import psycopg
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Float,
    Integer,
    TableValuedAlias,
    Text,
    any_,
    bindparam,
    cast,
    column,
    func,
)
from sqlalchemy.types import TypeEngine


def table_of(**columns: tuple[TypeEngine[Any], Sequence[object]]) -> TableValuedAlias:
    """Return `unnest(...)` of parallel arrays as a table: name=(type, values)."""
    arrays = [_array(type_, values) for type_, values in columns.values()]
    typed = [column(name, type_) for name, (type_, _) in columns.items()]
    return func.unnest(*arrays).table_valued(*typed).render_derived()


def any_of(ids: Collection[int]) -> ColumnElement[Any]:
    """Return the right side of `column = ANY(ids)`."""
    return any_(_array(BigInteger(), ids))


def text_of(values: Iterable[object]) -> str:
    """Return an array as PostgreSQL writes it, of values that need no quotes: the driver would look at each one."""
    return f"{{{','.join(['NULL' if value is None else str(value) for value in values])}}}"


def driver_of(connection: Connection) -> psycopg.Connection[Any]:
    """Return what SQLAlchemy talks through, for COPY and for results in binary."""
    return cast_type("psycopg.Connection[Any]", connection.connection.driver_connection)


def _array(type_: TypeEngine[Any], values: Collection[object]) -> ColumnElement[Any]:
    if isinstance(type_, Integer | Float):
        return cast(bindparam(None, text_of(values), type_=Text()), ARRAY(type_))
    return bindparam(None, list(values), type_=ARRAY(type_))
