"""The autoscaler's window: what it sees, what it decided and why, and the number that a person puts in its place.

The autoscaler itself has no access to the database: it reads its signals here and hands in its decisions. What KEDA
or anything else that scales wants is one number, `/v1/autoscaler/desired`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Row, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from services.buffer.api_body import Raw, Reader
from services.buffer.api_context import Shared
from services.buffer.api_faults import FieldError, shown
from services.buffer.api_idempotency import Answer, OnlyOnce
from services.buffer.api_views import View
from services.buffer.problems import Problem
from services.buffer.scaling_tables import scale_decisions as decisions
from services.buffer.scaling_tables import scale_overrides as overrides
from services.buffer.signals import Signals, read_signals
from services.buffer.tables import runs

router: Final = APIRouter(prefix="/v1/autoscaler", tags=["autoscaler"])
_SHOWN: Final = 20
_STALE_SECONDS: Final = 120.0
_MOST: Final = 10_000


class DecisionBody(BaseModel):
    """What the autoscaler decided."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    desired: int = Field(ge=0, le=_MOST, description="generators there should be")
    replicas: int = Field(ge=0, le=_MOST, description="generators asked for now")
    ready: int = Field(ge=0, le=_MOST, description="of them sampling")
    reason: str = Field(pattern=r"^[a-z_]{1,40}$", description="for machines", examples=["starving"])
    sentence: str = Field(max_length=500, description="the same for people")
    applied: bool = Field(description="false: a dry run, or somebody else scales")
    decided_by: str = Field(min_length=1, max_length=200)
    signals: Signals | None = Field(default=None, description="what it was decided from; null when there were none")


class DecisionView(View):
    """A decision, from the first time it was made until it was made last."""

    desired: int
    replicas: int
    ready: int
    reason: str
    sentence: str
    applied: bool
    decided_by: str
    signals: Signals | None
    created_at: datetime
    decided_at: datetime


class OverrideBody(BaseModel):
    """A number of generators in place of the law's, until then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: int = Field(ge=0, le=_MOST)
    until: AwareDatetime


class OverrideView(View):
    """The number that holds until then."""

    replicas: int
    until: datetime


class AutoscalerView(View):
    """What the autoscaler sees and did; `decisions` has the newest first."""

    signals: Signals | None = Field(description="null before the buffer has said anything")
    override: OverrideView | None
    decision: DecisionView | None
    decisions: tuple[DecisionView, ...]


class DesiredView(View):
    """One number, for whatever scales."""

    desired: int


_DECISION: Final = Reader(DecisionBody)
_OVERRIDE: Final = Reader(OverrideBody)


def _decision_body(raw: Raw) -> DecisionBody:
    return _DECISION.json(raw)


def _override_body(raw: Raw) -> OverrideBody:
    body = _OVERRIDE.json(raw)
    if body.until <= datetime.now(UTC):
        fault = FieldError(field="/until", expected="a time to come", got=shown(body.until.isoformat()))
        raise Problem("invalid-request", fault)
    return body


@router.get("", operation_id="getAutoscaler")
def get_autoscaler(context: Shared) -> AutoscalerView:
    """Show the signals, the decisions with their reasons, and the override."""
    with context.engine.connect() as connection:
        found = [_view(row) for row in _newest(connection, context.run_id, _SHOWN)]
        return AutoscalerView(
            signals=read_signals(connection, context.run_id),
            override=_override(connection, context.run_id),
            decision=found[0] if found else None,
            decisions=tuple(found),
        )


@router.get("/desired", operation_id="getDesiredGenerators")
def get_desired(context: Shared) -> DesiredView:
    """Give the number of generators there should be: the override's, or that of the last decision."""
    with context.engine.connect() as connection:
        if (override := _override(connection, context.run_id)) is not None:
            return DesiredView(desired=override.replicas)
        newest = _newest(connection, context.run_id, 1)
        age = (datetime.now(UTC) - newest[0].decided_at).total_seconds() if newest else None
    if age is None or age > _STALE_SECONDS:
        got = "none yet" if age is None else f"one {age:.0f} s old"
        raise Problem("no-decision", detail=f"expected a decision within {_STALE_SECONDS:.0f} s, got {got}")
    return DesiredView(desired=newest[0].desired)


@router.post("/decisions", operation_id="addScaleDecision", status_code=HTTPStatus.CREATED, response_model=DecisionView)
def add_decision(once: OnlyOnce, context: Shared, body: Annotated[DecisionBody, Depends(_decision_body)]) -> Response:
    """Hand in a decision. One that says the same as the last extends it."""
    return once.answer(lambda connection: Answer(HTTPStatus.CREATED, _add(connection, context.run_id, body)))


@router.post("/override", operation_id="overrideAutoscaler", response_model=OverrideView)
def set_override(once: OnlyOnce, context: Shared, body: Annotated[OverrideBody, Depends(_override_body)]) -> Response:
    """Put a number in place of the law's until a time; a second one replaces the first."""

    def work(connection: Connection) -> Answer:
        _ensure_run(connection, context.run_id)
        row = insert(overrides).values(run_id=context.run_id, **body.model_dump())
        again = {"replicas": body.replicas, "until": body.until, "created_at": func.now()}
        connection.execute(row.on_conflict_do_update(index_elements=[overrides.c.run_id], set_=again))
        return Answer(HTTPStatus.OK, OverrideView.model_validate(body, from_attributes=True))

    return once.answer(work)


@router.delete("/override", operation_id="clearOverride", status_code=HTTPStatus.NO_CONTENT)
def clear_override(once: OnlyOnce, context: Shared) -> Response:
    """Let the law decide again."""

    def work(connection: Connection) -> Answer:
        connection.execute(delete(overrides).where(overrides.c.run_id == context.run_id))
        return Answer(HTTPStatus.NO_CONTENT)

    return once.answer(work)


def _add(connection: Connection, run_id: str, body: DecisionBody) -> DecisionView:
    _ensure_run(connection, run_id)
    last = _newest(connection, run_id, 1)
    values = body.model_dump(mode="json")
    if last and all(getattr(last[0], name) == values[name] for name in ("desired", "reason", "applied", "decided_by")):
        same = decisions.c.decision_id == last[0].decision_id
        statement = update(decisions).where(same).values(**values, decided_at=func.now()).returning(decisions)
        return _view(connection.execute(statement).one())
    return _view(connection.execute(insert(decisions).values(run_id=run_id, **values).returning(decisions)).one())


def _ensure_run(connection: Connection, run_id: str) -> None:
    connection.execute(insert(runs).values(run_id=run_id).on_conflict_do_nothing())


def _newest(connection: Connection, run_id: str, count: int) -> list[Row[Any]]:
    query = select(decisions).where(decisions.c.run_id == run_id)
    return list(connection.execute(query.order_by(decisions.c.decision_id.desc()).limit(count)))


def _override(connection: Connection, run_id: str) -> OverrideView | None:
    holds = (overrides.c.run_id == run_id) & (overrides.c.until > func.now())
    row = connection.execute(select(overrides.c.replicas, overrides.c.until).where(holds)).one_or_none()
    return None if row is None else OverrideView.model_validate(row, from_attributes=True)


def _view(row: Row[Any]) -> DecisionView:
    return DecisionView.model_validate(row, from_attributes=True)
