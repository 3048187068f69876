"""What people may ask of scored texts: gradings, re-scorings with their audit, seeds, replays of dead letters."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"

# Before anything changes, and in the order of those who write: otherwise each would wait for the other.
_LOCK = """
LOCK TABLE issues IN ACCESS EXCLUSIVE MODE;
LOCK TABLE prompts, tasks, runs IN SHARE ROW EXCLUSIVE MODE;
LOCK TABLE trajectories, evaluations, dead_letters IN ACCESS EXCLUSIVE MODE;
"""

_ORDERS = """
ALTER TABLE issues ALTER task_id DROP NOT NULL, ALTER prompt_id DROP NOT NULL, ADD request_id bigint;
ALTER TABLE issues DROP CONSTRAINT ck_issues_purpose;
ALTER TABLE issues
    ADD CONSTRAINT ck_issues_purpose CHECK (purpose IN ('train', 'eval', 'grade', 'rescore')),
    ADD CONSTRAINT ck_issues_has_a_prompt
        CHECK (purpose = 'grade' OR (task_id IS NOT NULL AND prompt_id IS NOT NULL)),
    ADD CONSTRAINT ck_issues_was_asked_for CHECK ((purpose IN ('grade', 'rescore')) = (request_id IS NOT NULL));
ALTER TABLE trajectories ADD spans jsonb;
ALTER TABLE evaluations ADD policy_logprob double precision;
ALTER TABLE dead_letters ADD replay_asked_at timestamptz, ADD replayed_at timestamptz, ADD replay_fault text;
CREATE INDEX ix_dead_letters_replay ON dead_letters (run_id)
    WHERE replay_asked_at IS NOT NULL AND replayed_at IS NULL AND replay_fault IS NULL;
CREATE INDEX ix_dead_letters_issue_id ON dead_letters (issue_id);
"""

_REQUESTS = """
CREATE TABLE gradings (
    grading_id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_gradings PRIMARY KEY,
    run_id text NOT NULL CONSTRAINT fk_gradings_run_id REFERENCES runs,
    task_id bigint CONSTRAINT fk_gradings_task_id REFERENCES tasks,
    request jsonb NOT NULL,
    issue_id bigint,
    result jsonb,
    fault text,
    settled_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ix_gradings_open ON gradings (run_id, grading_id) WHERE issue_id IS NULL;
CREATE TABLE rescores (
    rescore_id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_rescores PRIMARY KEY,
    run_id text NOT NULL CONSTRAINT fk_rescores_run_id REFERENCES runs,
    task_id bigint NOT NULL CONSTRAINT fk_rescores_task_id REFERENCES tasks,
    requested_by text NOT NULL,
    reward jsonb NOT NULL,
    combination jsonb NOT NULL,
    chosen jsonb NOT NULL,
    through_issue_id bigint,
    total integer,
    sent integer NOT NULL DEFAULT 0,
    after_prompt_id bigint NOT NULL DEFAULT '0',
    after_trajectory_id bigint NOT NULL DEFAULT '0',
    closed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX uq_rescores_open ON rescores (task_id) WHERE closed_at IS NULL;
CREATE TABLE rescored (
    rescore_id bigint NOT NULL CONSTRAINT fk_rescored_rescore_id REFERENCES rescores,
    trajectory_id bigint NOT NULL,
    issue_id bigint NOT NULL,
    old_reward real NOT NULL,
    old_scores jsonb NOT NULL,
    new_reward real,
    new_scores jsonb,
    fault text,
    settled_at timestamptz,
    CONSTRAINT pk_rescored PRIMARY KEY (rescore_id, trajectory_id)
);
CREATE INDEX ix_rescored_trajectory_id ON rescored (trajectory_id);
CREATE INDEX ix_rescored_issue_id ON rescored (issue_id);
CREATE TABLE seeds (
    seed_id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_seeds PRIMARY KEY,
    run_id text NOT NULL CONSTRAINT fk_seeds_run_id REFERENCES runs,
    task_id bigint NOT NULL CONSTRAINT fk_seeds_task_id REFERENCES tasks,
    prompt_id bigint NOT NULL CONSTRAINT fk_seeds_prompt_id REFERENCES prompts,
    text text NOT NULL,
    issue_id bigint,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ix_seeds_open ON seeds (task_id, prompt_id, seed_id) WHERE issue_id IS NULL;
CREATE INDEX ix_seeds_issue_id ON seeds (issue_id);
"""


def upgrade() -> None:
    """Widen the orders, then make the tables of requests."""
    for statements in (_LOCK, _ORDERS, _REQUESTS):
        op.execute(statements)
