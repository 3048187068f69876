"""Trajectories by run: one LIST partition each, without foreign keys, ids from a sequence that the writer draws on.

Partitions lie in a schema of their own and are made by a trigger with the row of `runs`, in its owner's name: nobody
who only writes the line needs the right to make tables. They are built aside and attached, which, unlike CREATE
TABLE ... PARTITION OF, does not stop those who read and write other runs.
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0002"

# All at once, before the rows are moved, and in the order of those who write: otherwise they would wait for us with
# half of them in hand, and we for them. The old foreign keys lead to the first four.
_LOCK = "LOCK TABLE issues, prompts, tasks, runs, trajectories, payloads IN ACCESS EXCLUSIVE MODE"

_SET_ASIDE = """
ALTER TABLE payloads RENAME TO old_payloads;
ALTER TABLE trajectories RENAME TO old_trajectories;
ALTER TABLE old_payloads DROP CONSTRAINT fk_payloads_trajectory_id;
ALTER TABLE old_payloads DROP CONSTRAINT pk_payloads;
ALTER TABLE old_trajectories DROP CONSTRAINT pk_trajectories;
DROP INDEX uq_trajectories_fingerprint, ix_trajectories_run_id;
"""

_TABLES = """
CREATE SEQUENCE trajectory_ids;
CREATE TABLE trajectories (
    trajectory_id bigint NOT NULL DEFAULT nextval('trajectory_ids'),
    run_id text NOT NULL,
    task_id bigint NOT NULL,
    prompt_id bigint NOT NULL,
    issue_id bigint NOT NULL,
    fingerprint uuid NOT NULL,
    policy_version integer NOT NULL,
    reward real NOT NULL CONSTRAINT ck_trajectories_reward_is_finite CHECK (abs(reward) < 'infinity'::real),
    tokens integer NOT NULL,
    temperature real NOT NULL,
    top_p real NOT NULL,
    finish_reason text NOT NULL,
    scores jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_trajectories PRIMARY KEY (trajectory_id, run_id)
) PARTITION BY LIST (run_id);
CREATE UNIQUE INDEX uq_trajectories_fingerprint ON trajectories (prompt_id, fingerprint, run_id);
CREATE INDEX ix_trajectories_newest
    ON trajectories (prompt_id, policy_version DESC, trajectory_id DESC) INCLUDE (reward);
CREATE TABLE payloads (
    trajectory_id bigint NOT NULL,
    run_id text NOT NULL,
    token_ids bytea NOT NULL,
    logprobs bytea NOT NULL,
    text text NOT NULL,
    CONSTRAINT pk_payloads PRIMARY KEY (trajectory_id, run_id)
) PARTITION BY LIST (run_id);
ALTER TABLE payloads ALTER token_ids SET STORAGE EXTERNAL, ALTER logprobs SET STORAGE EXTERNAL;
"""

# Payloads up to 8 kB stay in their row, uncompressed: token ids do not shrink, and a batch reads hundreds of them.
_PARTITIONS = """
CREATE SCHEMA partitions;
CREATE FUNCTION open_run() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    parent text;
    partition text;
    options text;
BEGIN
    FOR parent, options IN VALUES ('trajectories', ''), ('payloads', 'toast_tuple_target = 8160, ') LOOP
        -- A run may have any name; a digest of it fits into an identifier.
        partition := format('%s_%s', parent, left(encode(sha256(convert_to(NEW.run_id, 'UTF8')), 'hex'), 32));
        CONTINUE WHEN to_regclass('partitions.' || partition) IS NOT NULL;
        EXECUTE format('CREATE TABLE partitions.%I (LIKE %I INCLUDING ALL) WITH (%s)', partition, parent,
            options || 'autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05');
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION partitions.%I FOR VALUES IN (%L)',
            parent, partition, NEW.run_id);
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER open_run AFTER INSERT ON runs FOR EACH ROW EXECUTE FUNCTION open_run();
"""

# The same function, fired once for the runs that are there.
_OLD_RUNS = """
CREATE TRIGGER open_old_run AFTER UPDATE ON runs FOR EACH ROW EXECUTE FUNCTION open_run();
UPDATE runs SET run_id = run_id;
DROP TRIGGER open_old_run ON runs;
"""

_COPY = """
INSERT INTO trajectories SELECT trajectory_id, run_id, task_id, prompt_id, issue_id, fingerprint, policy_version,
    reward, tokens, temperature, top_p, finish_reason, scores, created_at FROM old_trajectories;
INSERT INTO payloads SELECT trajectory_id, run_id, token_ids, logprobs, text
    FROM old_payloads JOIN old_trajectories USING (trajectory_id);
SELECT setval('trajectory_ids', coalesce(max(trajectory_id), 0) + 1, false) FROM trajectories;
DROP TABLE old_payloads, old_trajectories;
"""


def upgrade() -> None:
    """Move the rows into partitions; everybody waits until it is done.

    This one breaks the law of expand and contract: who wrote the tables before cannot write them after. No version
    of the platform was ever released with the schema before it.
    """
    for statements in (_LOCK, _SET_ASIDE, _TABLES, _PARTITIONS, _OLD_RUNS, _COPY):
        op.execute(statements)
