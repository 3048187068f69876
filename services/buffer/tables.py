"""The schema as data: what travels the line, at rest. Postgres is the truth; everything in memory is an index.

Every row carries its run. The numbers in `issues` and `trajectories` are the ledger: what was ordered from the
generators must be found again as stored, duplicate, dead-lettered, expired or in flight.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, REAL

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _now() -> Column[object]:
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now())


runs = Table(
    "runs",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("policy_version", Integer, nullable=False, server_default="-1"),  # newest announced; -1: none yet
    Column("step", Integer, nullable=False, server_default="0"),
    Column("checkpoint_batch_id", Integer, nullable=False, server_default="0"),  # a learner never asks for less again
    Column("status", JSONB, nullable=False, server_default="{}"),  # what the buffer last said of itself
    Column("status_at", DateTime(timezone=True)),
    _now(),
    CheckConstraint("run_id ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name="run_id"),  # as in the settings of every service
)

tasks = Table(
    "tasks",
    metadata,
    Column("task_id", BigInteger, Identity(always=True), primary_key=True),
    Column("run_id", Text, ForeignKey("runs.run_id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("spec", JSONB, nullable=False),  # tba_common.tasks.Task
    Column("state", Text, nullable=False, server_default="active"),
    Column("task_steps", Integer, nullable=False, server_default="0"),  # batches this task has been part of
    _now(),
    CheckConstraint("state IN ('active', 'paused', 'deleted')", name="state"),
)
Index(
    "uq_tasks_live_name",
    tasks.c.run_id,
    tasks.c.name,
    unique=True,
    postgresql_where=text("state <> 'deleted'"),
)

prompts = Table(
    "prompts",
    metadata,
    Column("prompt_id", BigInteger, Identity(always=True), primary_key=True),
    Column("task_id", BigInteger, ForeignKey("tasks.task_id"), nullable=False),
    Column("key", Text),  # the client's own id
    Column("split", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("reference", Text),
    Column("metadata", JSONB, nullable=False, server_default="{}"),
    Column("issues", Integer, nullable=False, server_default="0"),  # times ordered for training
    Column("token_ids", LargeBinary),  # int32, set by the first rollout that comes back
    _now(),
    CheckConstraint("split IN ('train', 'eval')", name="split"),
)
Index(
    "uq_prompts_task_id_key",
    prompts.c.task_id,
    prompts.c.key,
    unique=True,
    postgresql_where=text("key IS NOT NULL"),
)
Index("ix_prompts_next", prompts.c.task_id, prompts.c.split, prompts.c.issues, prompts.c.prompt_id)

# One order to the generators: one prompt, n completions. A second attempt is the same row.
issues = Table(
    "issues",
    metadata,
    Column("issue_id", BigInteger, Identity(always=True), primary_key=True),
    Column("run_id", Text, ForeignKey("runs.run_id"), nullable=False),
    Column("task_id", BigInteger, ForeignKey("tasks.task_id")),  # null: a grading that names no task
    Column("prompt_id", BigInteger, ForeignKey("prompts.prompt_id")),  # null: a grading
    Column("purpose", Text, nullable=False),
    Column("policy_version", Integer),  # of an evaluation
    Column("request_id", BigInteger),  # of a grading or a re-scoring: what asked for it (request_tables.py)
    Column("completions", Integer, nullable=False),
    Column("attempt", SmallInteger, nullable=False, server_default="1"),
    Column("partition", SmallInteger, nullable=False),
    Column("state", Text, nullable=False, server_default="in_flight"),
    Column("issued_at", DateTime(timezone=True), nullable=False, server_default=func.now()),  # of the last attempt
    Column("settled_at", DateTime(timezone=True)),
    # How the completions of a settled order ended; they sum to `completions`.
    Column("stored", Integer, nullable=False, server_default="0"),
    Column("duplicates", Integer, nullable=False, server_default="0"),
    Column("dead_lettered", Integer, nullable=False, server_default="0"),
    Column("expired", Integer, nullable=False, server_default="0"),
    CheckConstraint("state IN ('in_flight', 'settled')", name="state"),
    CheckConstraint("purpose IN ('train', 'eval', 'grade', 'rescore')", name="purpose"),
    CheckConstraint("purpose = 'grade' OR (task_id IS NOT NULL AND prompt_id IS NOT NULL)", name="has_a_prompt"),
    CheckConstraint("(purpose IN ('grade', 'rescore')) = (request_id IS NOT NULL)", name="was_asked_for"),
    CheckConstraint(
        "state = 'in_flight' AND stored + duplicates + dead_lettered + expired = 0"
        " OR state = 'settled' AND stored + duplicates + dead_lettered + expired = completions",
        name="settled_in_full",
    ),
)
Index("ix_issues_in_flight", issues.c.run_id, issues.c.issued_at, postgresql_where=text("state = 'in_flight'"))
Index("ix_issues_task_id", issues.c.task_id, issues.c.purpose, issues.c.policy_version)

# Given out by the writer, a block at once.
ID_BLOCK: Final = 64
trajectory_ids: Final = Sequence("trajectory_ids", increment=ID_BLOCK, metadata=metadata)

# Both tables of trajectories hold one partition per run: a finished run leaves in no time. A partition is made with
# the row of `runs` (migrations/versions/0004). They have no foreign keys, which would be looked up once per row:
# whoever writes has found the order of each row in the same transaction.
trajectories = Table(
    "trajectories",
    metadata,
    Column("trajectory_id", BigInteger, primary_key=True, server_default=trajectory_ids.next_value()),
    Column("run_id", Text, primary_key=True),
    Column("task_id", BigInteger, nullable=False),
    Column("prompt_id", BigInteger, nullable=False),
    Column("issue_id", BigInteger, nullable=False),
    Column("fingerprint", Uuid, nullable=False),  # blake2b-128 of the little-endian int32 tokens
    Column("policy_version", Integer, nullable=False),
    Column("reward", REAL, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("temperature", REAL, nullable=False),  # really sampled with
    Column("top_p", REAL, nullable=False),
    Column("finish_reason", Text, nullable=False),
    Column("scores", JSONB, nullable=False),  # [{scorer, version, value, seconds, attempts, details}]
    Column("spans", JSONB),  # [[policy version, tokens], ...] where more than one version wrote it, else null
    _now(),
    CheckConstraint("abs(reward) < 'infinity'::real", name="reward_is_finite"),
    postgresql_partition_by="LIST (run_id)",
)
Index(
    "uq_trajectories_fingerprint",
    trajectories.c.prompt_id,
    trajectories.c.fingerprint,
    trajectories.c.run_id,
    unique=True,
)
# Apart, so that an index rebuild reads narrow rows only.
payloads = Table(
    "payloads",
    metadata,
    Column("trajectory_id", BigInteger, primary_key=True, autoincrement=False),
    Column("run_id", Text, primary_key=True),
    Column("token_ids", LargeBinary, nullable=False),  # int32
    Column("logprobs", LargeBinary, nullable=False),  # float32
    Column("text", Text, nullable=False),
    postgresql_partition_by="LIST (run_id)",
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("issue_id", BigInteger, ForeignKey("issues.issue_id"), primary_key=True),
    Column("index", SmallInteger, primary_key=True),
    Column("run_id", Text, ForeignKey("runs.run_id"), nullable=False),
    Column("task_id", BigInteger, ForeignKey("tasks.task_id"), nullable=False),
    Column("prompt_id", BigInteger, ForeignKey("prompts.prompt_id"), nullable=False),
    Column("policy_version", Integer, nullable=False),
    Column("reward", REAL, nullable=False),
    Column("policy_logprob", Double),  # summed over the answer's tokens; null where it was not kept
    Column("text", Text, nullable=False),
    Column("scores", JSONB, nullable=False),
    _now(),
)
Index("ix_evaluations_task_id", evaluations.c.task_id, evaluations.c.policy_version)

# A batch is recorded before it is sent, so that it can be sent again as it was.
batches = Table(
    "batches",
    metadata,
    Column("run_id", Text, ForeignKey("runs.run_id"), primary_key=True),
    Column("batch_id", Integer, primary_key=True),
    Column("policy_version", Integer, nullable=False),  # of the learner, when drawn
    Column("groups", JSONB, nullable=False),  # [{prompt_id, task_id, task_step, kind, ...}]
    Column("sent_at", DateTime(timezone=True)),
    Column("trained_step", Integer),  # null until the learner reports it
    _now(),
)
Index("ix_batches_untrained", batches.c.run_id, batches.c.batch_id, postgresql_where=text("trained_step IS NULL"))

draws = Table(
    "draws",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("batch_id", Integer, primary_key=True),
    Column("group_index", SmallInteger, primary_key=True),
    Column("position", SmallInteger, primary_key=True),
    Column("trajectory_id", BigInteger, nullable=False),
    Column("draw_logprob", Double, nullable=False),  # given the draws before it in the group
    Column("marginal_logprob", Double, nullable=False),  # of a single draw from the whole prompt
    Column("reward", REAL, nullable=False),  # as drawn: a later duplicate may refresh the trajectory
    Column("policy_version", Integer, nullable=False),
)
Index("ix_draws_trajectory_id", draws.c.trajectory_id)

steps = Table(
    "steps",
    metadata,
    Column("run_id", Text, ForeignKey("runs.run_id"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("batch_id", Integer, nullable=False),
    Column("policy_version", Integer, nullable=False),
    Column("report", JSONB, nullable=False),  # tba_common.messages.Step
    _now(),
)

versions = Table(
    "versions",
    metadata,
    Column("run_id", Text, ForeignKey("runs.run_id"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("step", Integer, nullable=False),
    Column("uri", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("steps_per_version", Integer, nullable=False, server_default="1"),
    _now(),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("dead_letter_id", BigInteger, Identity(always=True), primary_key=True),
    Column("run_id", Text, ForeignKey("runs.run_id"), nullable=False),
    Column("issue_id", BigInteger),  # unknown when the message did not decode
    Column("service", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("schema_header", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("replay_asked_at", DateTime(timezone=True)),
    Column("replayed_at", DateTime(timezone=True)),  # sent again: at most once, for a second failure is a new letter
    Column("replay_fault", Text),  # why it could not be sent again
    _now(),
)

Index(
    "ix_dead_letters_replay",
    dead_letters.c.run_id,
    postgresql_where=text("replay_asked_at IS NOT NULL AND replayed_at IS NULL AND replay_fault IS NULL"),
)
Index("ix_dead_letters_issue_id", dead_letters.c.issue_id)
