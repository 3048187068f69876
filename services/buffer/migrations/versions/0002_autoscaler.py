"""The autoscaler's decisions, and the number that a person put in their place."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

_TABLES = """
CREATE TABLE scale_decisions (
    decision_id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_scale_decisions PRIMARY KEY,
    run_id text NOT NULL CONSTRAINT fk_scale_decisions_run_id REFERENCES runs,
    desired integer NOT NULL,
    replicas integer NOT NULL,
    ready integer NOT NULL,
    reason text NOT NULL,
    sentence text NOT NULL,
    signals jsonb,
    applied boolean NOT NULL,
    decided_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    decided_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ix_scale_decisions_run_id ON scale_decisions (run_id, decision_id);
CREATE TABLE scale_overrides (
    run_id text CONSTRAINT pk_scale_overrides PRIMARY KEY CONSTRAINT fk_scale_overrides_run_id REFERENCES runs,
    replicas integer NOT NULL CONSTRAINT ck_scale_overrides_replicas CHECK (replicas >= 0),
    until timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
"""


def upgrade() -> None:
    """Create both tables."""
    op.execute(_TABLES)
