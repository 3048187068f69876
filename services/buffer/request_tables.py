"""The schema of what is asked for: grade these, score those again, learn from these answers, evaluate this version.

The API writes the wish, the buffer makes orders of it (`issues`) and writes what came of them.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, REAL

from services.buffer.tables import metadata


def _asked_at() -> Column[object]:
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now())


# Texts to be scored as if the policy had written them. They are never trained on.
gradings = Table(
    "gradings",
    metadata,
    Column("grading_id", BigInteger, Identity(always=True), primary_key=True),
    Column("run_id", Text, ForeignKey("runs.run_id"), nullable=False),
    Column("task_id", BigInteger, ForeignKey("tasks.task_id")),  # null: the reward came with the request
    Column("request", JSONB, nullable=False),  # gradings.Request
    Column("issue_id", BigInteger),  # null until the buffer has made the order
    Column("result", JSONB),  # [{reward, scores, responses}], one for each completion
    Column("fault", Text),  # why there is no result
    Column("settled_at", DateTime(timezone=True)),
    _asked_at(),
)
Index("ix_gradings_open", gradings.c.run_id, gradings.c.grading_id, postgresql_where=text("issue_id IS NULL"))

# A task's stored trajectories are to be scored again, those ordered up to `through_issue_id`.
rescores = Table(
    "rescores",
    metadata,
    Column("rescore_id", BigInteger, Identity(always=True), primary_key=True),
    Column("run_id", Text, ForeignKey("runs.run_id"), nullable=False),
    Column("task_id", BigInteger, ForeignKey("tasks.task_id"), nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("reward", JSONB, nullable=False),  # the terms that they are scored with
    Column("combination", JSONB, nullable=False),
    Column("chosen", JSONB, nullable=False),  # rescoring.Chosen: which of them
    Column("through_issue_id", BigInteger),  # null until the buffer has begun
    Column("total", Integer),  # trajectories chosen, when the first was sent
    Column("sent", Integer, nullable=False, server_default="0"),
    Column("after_prompt_id", BigInteger, nullable=False, server_default="0"),  # how far it has come, in this order
    Column("after_trajectory_id", BigInteger, nullable=False, server_default="0"),
    Column("closed_at", DateTime(timezone=True)),
    _asked_at(),
)
Index("uq_rescores_open", rescores.c.task_id, unique=True, postgresql_where=text("closed_at IS NULL"))

# The audit: one row for each trajectory that was sent to its scorers again. It outlives the trajectory.
rescored = Table(
    "rescored",
    metadata,
    Column("rescore_id", BigInteger, ForeignKey("rescores.rescore_id"), primary_key=True),
    Column("trajectory_id", BigInteger, primary_key=True),
    Column("issue_id", BigInteger, nullable=False),
    Column("old_reward", REAL, nullable=False),
    Column("old_scores", JSONB, nullable=False),
    Column("new_reward", REAL),  # null until its scorers have answered, and where they could not
    Column("new_scores", JSONB),
    Column("fault", Text),
    Column("settled_at", DateTime(timezone=True)),
)
Index("ix_rescored_trajectory_id", rescored.c.trajectory_id)
Index("ix_rescored_issue_id", rescored.c.issue_id)

# Known answers to prompts of a task: scored and stored as if the policy had written them.
seeds = Table(
    "seeds",
    metadata,
    Column("seed_id", BigInteger, Identity(always=True), primary_key=True),
    Column("run_id", Text, ForeignKey("runs.run_id"), nullable=False),
    Column("task_id", BigInteger, ForeignKey("tasks.task_id"), nullable=False),
    Column("prompt_id", BigInteger, ForeignKey("prompts.prompt_id"), nullable=False),
    Column("text", Text, nullable=False),
    Column("issue_id", BigInteger),  # null until ordered
    _asked_at(),
)
Index("ix_seeds_open", seeds.c.task_id, seeds.c.prompt_id, seeds.c.seed_id, postgresql_where=text("issue_id IS NULL"))
Index("ix_seeds_issue_id", seeds.c.issue_id)

# Asked for by the API, and by the buffer itself when a version is due; the feed turns them into issues.
evaluation_requests = Table(
    "evaluation_requests",
    metadata,
    Column("task_id", BigInteger, ForeignKey("tasks.task_id"), primary_key=True),
    Column("policy_version", Integer, primary_key=True),
    Column("run_id", Text, ForeignKey("runs.run_id"), nullable=False),
    Column("issued_at", DateTime(timezone=True)),  # null until every held-out prompt has its issue
    _asked_at(),
)
Index(
    "ix_evaluation_requests_open",
    evaluation_requests.c.run_id,
    evaluation_requests.c.created_at,
    postgresql_where=text("issued_at IS NULL"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key", Text, primary_key=True),
    Column("request", Text, primary_key=True),  # method and path
    Column("body_sha256", LargeBinary, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("response", JSONB, nullable=False),
    _asked_at(),
)
