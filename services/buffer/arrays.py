"""Arrays as SQL: a batch of rows goes in as one parameter per column, so a statement has one shape at any size."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ARRAY, BigInteger, ColumnElement, TableValuedAlias, any_, bindparam, column, func
from sqlalchemy.types import TypeEngine


def table_of(**columns: tuple[TypeEngine[Any], Sequence[object]]) -> TableValuedAlias:
    """Return `unnest(...)` of parallel arrays as a table: name=(type, values)."""
    arrays = [bindparam(None, list(values), type_=ARRAY(type_)) for type_, values in columns.values()]
    typed = [column(name, type_) for name, (type_, _) in columns.items()]
    return func.unnest(*arrays).table_valued(*typed).render_derived()


def any_of(ids: Collection[int]) -> ColumnElement[Any]:
    """Return the right side of `column = ANY(ids)`."""
    return any_(bindparam(None, list(ids), type_=ARRAY(BigInteger)))
