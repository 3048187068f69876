"""The first schema, one statement group per stage of the line. Forward only: a restore is the way back.

Written out, not made from `tables.py`, so that it stays what it was when `tables.py` moves on.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

_RUNS = """
CREATE TABLE runs (
    run_id text CONSTRAINT pk_runs PRIMARY KEY,
    policy_version integer NOT NULL DEFAULT -1,
    step integer NOT NULL DEFAULT 0,
    checkpoint_batch_id integer NOT NULL DEFAULT 0,
    status jsonb NOT NULL DEFAULT '{}',
    status_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE versions (
    run_id text NOT NULL CONSTRAINT fk_versions_run_id REFERENCES runs,
    version integer NOT NULL,
    step integer NOT NULL,
    uri text NOT NULL,
    digest text NOT NULL,
    steps_per_version integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_versions PRIMARY KEY (run_id, version)
);
CREATE TABLE leases (
    name text CONSTRAINT pk_leases PRIMARY KEY,
    owner text NOT NULL,
    epoch bigint NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE TABLE idempotency_keys (
    key text NOT NULL,
    request text NOT NULL,
    body_sha256 bytea NOT NULL,
    status smallint NOT NULL,
    response jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_idempotency_keys PRIMARY KEY (key, request)
);
"""

_TASKS = """
CREATE TABLE tasks (
    task_id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_tasks PRIMARY KEY,
    run_id text NOT NULL CONSTRAINT fk_tasks_run_id REFERENCES runs,
    name text NOT NULL,
    spec jsonb NOT NULL,
    state text NOT NULL DEFAULT 'active' CONSTRAINT ck_tasks_state CHECK (state IN ('active', 'paused', 'deleted')),
    task_steps integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX uq_tasks_live_name ON tasks (run_id, name) WHERE state <> 'deleted';
CREATE TABLE prompts (
    prompt_id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_prompts PRIMARY KEY,
    task_id bigint NOT NULL CONSTRAINT fk_prompts_task_id REFERENCES tasks,
    key text,
    split text NOT NULL CONSTRAINT ck_prompts_split CHECK (split IN ('train', 'eval')),
    text text NOT NULL,
    reference text,
    metadata jsonb NOT NULL DEFAULT '{}',
    issues integer NOT NULL DEFAULT 0,
    token_ids bytea,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX uq_prompts_task_id_key ON prompts (task_id, key) WHERE key IS NOT NULL;
CREATE INDEX ix_prompts_next ON prompts (task_id, split, issues, prompt_id);
CREATE TABLE evaluation_requests (
    task_id bigint NOT NULL CONSTRAINT fk_evaluation_requests_task_id REFERENCES tasks,
    policy_version integer NOT NULL,
    run_id text NOT NULL CONSTRAINT fk_evaluation_requests_run_id REFERENCES runs,
    issued_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_evaluation_requests PRIMARY KEY (task_id, policy_version)
);
CREATE INDEX ix_evaluation_requests_open ON evaluation_requests (run_id, created_at) WHERE issued_at IS NULL;
"""

_ISSUES = """
CREATE TABLE issues (
    issue_id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_issues PRIMARY KEY,
    run_id text NOT NULL CONSTRAINT fk_issues_run_id REFERENCES runs,
    task_id bigint NOT NULL CONSTRAINT fk_issues_task_id REFERENCES tasks,
    prompt_id bigint NOT NULL CONSTRAINT fk_issues_prompt_id REFERENCES prompts,
    purpose text NOT NULL CONSTRAINT ck_issues_purpose CHECK (purpose IN ('train', 'eval')),
    policy_version integer,
    completions integer NOT NULL,
    attempt smallint NOT NULL DEFAULT '1',
    partition smallint NOT NULL,
    state text NOT NULL DEFAULT 'in_flight' CONSTRAINT ck_issues_state CHECK (state IN ('in_flight', 'settled')),
    issued_at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz,
    stored integer NOT NULL DEFAULT 0,
    duplicates integer NOT NULL DEFAULT 0,
    dead_lettered integer NOT NULL DEFAULT 0,
    expired integer NOT NULL DEFAULT 0,
    CONSTRAINT ck_issues_settled_in_full CHECK (
        state = 'in_flight' AND stored + duplicates + dead_lettered + expired = 0
        OR state = 'settled' AND stored + duplicates + dead_lettered + expired = completions
    )
);
CREATE INDEX ix_issues_in_flight ON issues (run_id, issued_at) WHERE state = 'in_flight';
CREATE INDEX ix_issues_task_id ON issues (task_id, purpose, policy_version);
CREATE TABLE dead_letters (
    dead_letter_id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_dead_letters PRIMARY KEY,
    run_id text NOT NULL CONSTRAINT fk_dead_letters_run_id REFERENCES runs,
    issue_id bigint,
    service text NOT NULL,
    reason text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    schema_header text NOT NULL,
    body bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE input_offsets (
    run_id text NOT NULL CONSTRAINT fk_input_offsets_run_id REFERENCES runs,
    topic text NOT NULL,
    partition integer NOT NULL,
    next_offset bigint NOT NULL,
    CONSTRAINT pk_input_offsets PRIMARY KEY (run_id, topic, partition)
);
"""

# Payloads up to 8 kB stay in their row, uncompressed: token ids do not shrink, and a batch reads hundreds of them.
_TRAJECTORIES = """
CREATE TABLE trajectories (
    trajectory_id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_trajectories PRIMARY KEY,
    run_id text NOT NULL CONSTRAINT fk_trajectories_run_id REFERENCES runs,
    task_id bigint NOT NULL CONSTRAINT fk_trajectories_task_id REFERENCES tasks,
    prompt_id bigint NOT NULL CONSTRAINT fk_trajectories_prompt_id REFERENCES prompts,
    issue_id bigint NOT NULL CONSTRAINT fk_trajectories_issue_id REFERENCES issues,
    fingerprint uuid NOT NULL,
    policy_version integer NOT NULL,
    reward real NOT NULL CONSTRAINT ck_trajectories_reward_is_finite CHECK (abs(reward) < 'infinity'::real),
    tokens integer NOT NULL,
    temperature real NOT NULL,
    top_p real NOT NULL,
    finish_reason text NOT NULL,
    scores jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE UNIQUE INDEX uq_trajectories_fingerprint ON trajectories (prompt_id, fingerprint);
CREATE INDEX ix_trajectories_run_id ON trajectories (run_id, trajectory_id);
CREATE TABLE payloads (
    trajectory_id bigint NOT NULL
        CONSTRAINT fk_payloads_trajectory_id REFERENCES trajectories ON DELETE CASCADE,
    token_ids bytea NOT NULL,
    logprobs bytea NOT NULL,
    text text NOT NULL,
    CONSTRAINT pk_payloads PRIMARY KEY (trajectory_id)
) WITH (toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE payloads ALTER token_ids SET STORAGE EXTERNAL, ALTER logprobs SET STORAGE EXTERNAL;
CREATE TABLE evaluations (
    issue_id bigint NOT NULL CONSTRAINT fk_evaluations_issue_id REFERENCES issues,
    index smallint NOT NULL,
    run_id text NOT NULL CONSTRAINT fk_evaluations_run_id REFERENCES runs,
    task_id bigint NOT NULL CONSTRAINT fk_evaluations_task_id REFERENCES tasks,
    prompt_id bigint NOT NULL CONSTRAINT fk_evaluations_prompt_id REFERENCES prompts,
    policy_version integer NOT NULL,
    reward real NOT NULL,
    text text NOT NULL,
    scores jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_evaluations PRIMARY KEY (issue_id, index)
);
CREATE INDEX ix_evaluations_task_id ON evaluations (task_id, policy_version);
"""

_BATCHES = """
CREATE TABLE batches (
    run_id text NOT NULL CONSTRAINT fk_batches_run_id REFERENCES runs,
    batch_id integer NOT NULL,
    policy_version integer NOT NULL,
    groups jsonb NOT NULL,
    sent_at timestamptz,
    trained_step integer,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_batches PRIMARY KEY (run_id, batch_id)
);
CREATE INDEX ix_batches_untrained ON batches (run_id, batch_id) WHERE trained_step IS NULL;
CREATE TABLE draws (
    run_id text NOT NULL,
    batch_id integer NOT NULL,
    group_index smallint NOT NULL,
    position smallint NOT NULL,
    trajectory_id bigint NOT NULL,
    draw_logprob double precision NOT NULL,
    marginal_logprob double precision NOT NULL,
    reward real NOT NULL,
    policy_version integer NOT NULL,
    CONSTRAINT pk_draws PRIMARY KEY (run_id, batch_id, group_index, position)
);
CREATE INDEX ix_draws_trajectory_id ON draws (trajectory_id);
CREATE TABLE steps (
    run_id text NOT NULL CONSTRAINT fk_steps_run_id REFERENCES runs,
    step integer NOT NULL,
    batch_id integer NOT NULL,
    policy_version integer NOT NULL,
    report jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_steps PRIMARY KEY (run_id, step)
);
CREATE TABLE sampler_state (
    run_id text CONSTRAINT pk_sampler_state PRIMARY KEY CONSTRAINT fk_sampler_state_run_id REFERENCES runs,
    inserts bigint NOT NULL DEFAULT '0',
    samples bigint NOT NULL DEFAULT '0',
    evicted bigint NOT NULL DEFAULT '0',
    online_floor integer NOT NULL DEFAULT 0,
    offline_floor integer NOT NULL DEFAULT 0
);
CREATE TABLE decks (
    run_id text NOT NULL CONSTRAINT fk_decks_run_id REFERENCES runs,
    deck text NOT NULL CONSTRAINT ck_decks_deck CHECK (deck IN ('online', 'offline')),
    prompt_id bigint NOT NULL,
    dealt integer NOT NULL,
    CONSTRAINT pk_decks PRIMARY KEY (run_id, deck, prompt_id)
) WITH (fillfactor = 70);
"""


def upgrade() -> None:
    """Create every table."""
    for statements in (_RUNS, _TASKS, _ISSUES, _TRAJECTORIES, _BATCHES):
        op.execute(statements)
