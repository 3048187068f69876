"""What roles of least privilege lean on: runs open their partitions in the owner's name, so their names are checked.

What each role may do is no revision: `roles.py` grants it after every migration.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

# Without EXECUTE nobody can hang the function on a table of his own, and make partitions with it as he likes.
_RUNS = r"""
ALTER TABLE runs ADD CONSTRAINT ck_runs_run_id CHECK (run_id ~ '^[a-z0-9][a-z0-9-]{0,62}$');
REVOKE ALL ON FUNCTION open_run() FROM PUBLIC;
"""


def upgrade() -> None:
    """Narrow what opening a run can do."""
    op.execute(_RUNS)
