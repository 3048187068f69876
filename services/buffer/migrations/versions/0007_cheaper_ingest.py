"""What made storing a row dearer than need be: an id fetched for each, and an index that no query is slower without."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Take ids in blocks of 64, of which a program of the revision before uses one each; drop the covering index.

    The rows of a prompt are found by the index of fingerprints, and are few enough to be sorted.
    """
    op.execute("ALTER SEQUENCE trajectory_ids INCREMENT BY 64")
    op.execute("DROP INDEX ix_trajectories_newest")
