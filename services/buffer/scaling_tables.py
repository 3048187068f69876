"""What the autoscaler decided and why, at rest, and the number that a person put in its place."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB

from services.buffer.tables import metadata

# One row for as long as the decision stays the same: `created_at` to `decided_at`, with the signals of the last time.
scale_decisions: Final = Table(
    "scale_decisions",
    metadata,
    Column("decision_id", BigInteger, Identity(always=True), primary_key=True),
    Column("run_id", Text, ForeignKey("runs.run_id"), nullable=False),
    Column("desired", Integer, nullable=False),
    Column("replicas", Integer, nullable=False),  # there were, when it was decided last
    Column("ready", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("sentence", Text, nullable=False),
    Column("signals", JSONB),  # null where there were none
    Column("applied", Boolean, nullable=False),  # false: a dry run, somebody else scales
    Column("decided_by", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("decided_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
Index("ix_scale_decisions_run_id", scale_decisions.c.run_id, scale_decisions.c.decision_id)

scale_overrides: Final = Table(
    "scale_overrides",
    metadata,
    Column("run_id", Text, ForeignKey("runs.run_id"), primary_key=True),
    Column("replicas", Integer, nullable=False),
    Column("until", DateTime(timezone=True), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("replicas >= 0", name="replicas"),
)
