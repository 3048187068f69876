"""Trajectory ids in blocks: the writer takes 64 at once, and counts on from where a block begins."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """A program of the revision before uses one id of each block, which are ids nobody else has."""
    op.execute("ALTER SEQUENCE trajectory_ids INCREMENT BY 64")
