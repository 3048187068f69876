"""What the learner and the other services report, applied to the tables: steps, restarts, versions, dead letters.

Every write is a statement of fact that may come twice: the broker, or the learner, may repeat what it said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from sqlalchemy import Connection, Integer, case, cast, exists, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from services.buffer.request_tables import evaluation_requests
from services.buffer.tables import batches, dead_letters, runs, steps, tasks, versions
from tba_common.messages import DeadLetter, Resumed, Step, Weights


def apply_reports(connection: Connection, run_id: str, reports: Iterable[Step | Resumed]) -> None:
    """Apply what the learner said of its progress, in the order it said it."""
    for report in reports:
        if isinstance(report, Step):
            _apply_step(connection, run_id, report)
        else:
            _apply_resumed(connection, run_id, report)


def _apply_step(connection: Connection, run_id: str, step: Step) -> None:
    row = {
        "batch_id": step.batch_id,
        "policy_version": step.policy_version,
        "report": {name: _json(value) for name, value in step.model_dump(mode="json").items()},
    }
    statement = insert(steps).values(run_id=run_id, step=step.step, **row)
    again = {**row, "created_at": func.now()}  # trained again after a restart: the learner is there now, not then
    key = [steps.c.run_id, steps.c.step]
    is_new = steps.c.report != statement.excluded.report  # else it is only said again
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=again, where=is_new))
    _mark_trained(connection, run_id, batch_id=step.batch_id, step=step.step)
    progress = {
        "step": step.step,
        "policy_version": func.greatest(runs.c.policy_version, step.policy_version),
        "checkpoint_batch_id": func.greatest(runs.c.checkpoint_batch_id, step.checkpoint_batch_id),
    }
    connection.execute(update(runs).where(runs.c.run_id == run_id).values(progress))


def _json(value: object) -> object:
    """JSON has no NaN: as a string, whoever reads the report as a Step gets the number back."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _apply_resumed(connection: Connection, run_id: str, resumed: Resumed) -> None:
    """The learner is the truth: batches up to here are trained, later ones are not, whatever was reported.

    It says so in mid-run too, where a crash would bring it back further: only reports tell what a checkpoint covers,
    but for a batch that the tables do not know.
    """
    _mark_trained(connection, run_id, batch_id=resumed.batch_id, step=resumed.step)
    lost = update(batches).where(batches.c.run_id == run_id, batches.c.batch_id > resumed.batch_id)
    connection.execute(lost.where(batches.c.trained_step.is_not(None)).values(trained_step=None))
    known = exists().where(batches.c.run_id == run_id, batches.c.batch_id == resumed.batch_id)
    at_most = func.least(runs.c.checkpoint_batch_id, resumed.batch_id)
    progress = {"step": resumed.step, "checkpoint_batch_id": case((known, at_most), else_=resumed.batch_id)}
    connection.execute(update(runs).where(runs.c.run_id == run_id).values(progress))


def _mark_trained(connection: Connection, run_id: str, *, batch_id: int, step: int) -> None:
    """Batches are trained in order, one step each: a report of one stands for those before it."""
    open_ones = update(batches).where(
        batches.c.run_id == run_id, batches.c.trained_step.is_(None), batches.c.batch_id <= batch_id
    )
    connection.execute(open_ones.values(trained_step=step - (batch_id - batches.c.batch_id)))


def apply_weights(connection: Connection, run_id: str, weights: Weights) -> None:
    """Record an announced version, and ask for the evaluations that are due at it.

    The newest version is announced again and again, so a task that is posted later is evaluated at it too. Where the
    announcement of a version was lost, what was due at it is due at the next that is heard of.
    """
    before = select(func.coalesce(func.max(versions.c.version), -1)).where(versions.c.run_id == run_id)
    last = connection.execute(before).scalar_one()
    version = insert(versions).values(
        run_id=run_id,
        version=weights.version,
        step=weights.step,
        uri=weights.uri,
        digest=weights.digest,
        steps_per_version=weights.steps_per_version,
    )
    connection.execute(version.on_conflict_do_nothing())
    newest = func.greatest(runs.c.policy_version, weights.version)
    connection.execute(update(runs).where(runs.c.run_id == run_id).values(policy_version=newest))
    every = cast(tasks.c.spec["evaluate_every_versions"].astext, Integer)
    period = func.nullif(every, 0)
    is_due = or_(literal(weights.version) % period == 0, literal(weights.version) // period > literal(last) // period)
    due = select(tasks.c.task_id, literal(weights.version), literal(run_id)).where(
        tasks.c.run_id == run_id, tasks.c.state == "active", every > 0, is_due
    )
    request = insert(evaluation_requests).from_select(["task_id", "policy_version", "run_id"], due)
    connection.execute(request.on_conflict_do_nothing())


def apply_dead_letters(connection: Connection, run_id: str, letters: Iterable[DeadLetter]) -> None:
    """Keep dead letters for people to look at."""
    rows = [
        {
            "run_id": run_id,
            "issue_id": letter.issue_id,
            "service": letter.service,
            "reason": letter.reason.replace("\x00", ""),
            "topic": letter.topic,
            "partition": letter.partition,
            "offset": letter.offset,
            "schema_header": letter.schema_header.replace("\x00", ""),
            "body": letter.body,
        }
        for letter in letters
    ]
    if rows:
        connection.execute(insert(dead_letters), rows)
