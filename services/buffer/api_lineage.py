"""What happened to a trajectory after it was stored: the batches and steps that drew it, and its re-scorings."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, and_, select

from services.buffer.api_views import DrawView, RescoreAudit
from services.buffer.request_tables import rescored, rescores
from services.buffer.tables import batches, draws, steps


def draws_of(connection: Connection, run_id: str, trajectory_id: int) -> tuple[DrawView, ...]:
    """Return every time that it was drawn into a batch, with the step that trained the batch."""
    of_batch = and_(batches.c.run_id == draws.c.run_id, batches.c.batch_id == draws.c.batch_id)
    of_step = and_(steps.c.run_id == batches.c.run_id, steps.c.step == batches.c.trained_step)
    columns = ("batch_id", "group_index", "position", "draw_logprob", "marginal_logprob", "reward", "policy_version")
    query = (
        select(
            *(draws.c[name] for name in columns),
            batches.c.trained_step.label("step"),
            steps.c.created_at.label("trained_at"),
        )
        .join(batches, of_batch)
        .outerjoin(steps, of_step)
        .where(draws.c.trajectory_id == trajectory_id, draws.c.run_id == run_id)
        .order_by(draws.c.batch_id)
    )
    return tuple(DrawView.model_validate(row, from_attributes=True) for row in connection.execute(query))


def audits_of(connection: Connection, trajectory_id: int) -> tuple[RescoreAudit, ...]:
    """Return every time that it was scored again, oldest first."""
    query = (
        select(rescored, rescores.c.requested_by, rescores.c.created_at.label("asked_at"))
        .join(rescores, rescores.c.rescore_id == rescored.c.rescore_id)
        .where(rescored.c.trajectory_id == trajectory_id)
        .order_by(rescored.c.rescore_id)
    )
    return tuple(
        RescoreAudit.model_validate(
            {**row, "old_scorers": _versions(row["old_scores"]), "new_scorers": _versions(row["new_scores"])}
        )
        for row in connection.execute(query).mappings()
    )


def _versions(scores: list[dict[str, Any]] | None) -> dict[str, str]:
    return {score["scorer"]: score["version"] for score in scores or ()}
