"""Least privilege: what a role is granted is what its process needs, and nobody but the owner changes the schema.

That it is enough is shown everywhere else: the tests of the API and of the buffer connect in these roles.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Engine, NullPool, create_engine, make_url, text

from services.buffer.migrations import SchemaError, migrate, require_head
from services.buffer.migrations.roles import GRANTS
from services.buffer.restore import ensure_run
from services.buffer.schema import metadata
from tba_cli.local import postgres
from tests.logins import ROLES, as_role, make_logins

pytestmark = pytest.mark.integration

TABLES = [*metadata.tables, "alembic_version"]
PRIVILEGES = """
    SELECT table_name, column_name, privilege_type FROM information_schema.column_privileges
    WHERE grantee = :role AND table_schema = 'public'
    UNION SELECT table_name, NULL, privilege_type FROM information_schema.role_table_grants
    WHERE grantee = :role AND table_schema = 'public'
"""


@pytest.fixture
def owner(migrated: str) -> Iterator[Engine]:
    engine = create_engine(migrated, poolclass=NullPool)
    yield engine
    engine.dispose()


def allowed(url: str, role: str, *statements: str) -> list[str]:
    """Those of the statements that PostgreSQL does not refuse for want of a privilege; none leaves a trace."""
    found = []
    with psycopg.connect(url_of(as_role(url, role))) as connection:
        for statement in statements:
            try:
                connection.execute(statement)
                found.append(statement)
            except InsufficientPrivilege:
                pass
            finally:
                connection.rollback()
    return found


def url_of(url: str) -> str:
    """SQLAlchemy's URL as the driver takes it."""
    return url.replace("+psycopg", "")


def granted(engine: Engine, role: str) -> set[tuple[str, str | None, str]]:
    with engine.connect() as connection:
        return {(*row,) for row in connection.execute(text(PRIVILEGES), {"role": role})}


def test_a_login_exists_for_every_role() -> None:
    assert set(ROLES) == GRANTS.keys()


@pytest.mark.parametrize("role", ROLES)
def test_every_table_has_its_word_in_every_role(role: str) -> None:
    assert sorted(GRANTS[role]) == sorted(TABLES)


@pytest.mark.parametrize("role", ROLES)
def test_no_role_changes_the_schema_or_empties_a_table(migrated: str, role: str) -> None:
    changes = ("TRUNCATE {}", "DROP TABLE {} CASCADE", "ALTER TABLE {} ADD extra int", "CREATE INDEX ON {} ((1))")
    statements = [change.format(table) for table in TABLES for change in changes]
    others = ["CREATE TABLE mine (n int)", "CREATE TABLE partitions.mine (n int)", "CREATE SCHEMA mine"]
    others += ["ALTER SEQUENCE trajectory_ids RESTART", "DROP FUNCTION open_run CASCADE", "CREATE ROLE mine"]
    statements += [*others, "SELECT setval('trajectory_ids', 1)", "UPDATE alembic_version SET version_num = '0'"]
    assert allowed(migrated, role, *statements) == []


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("tba_api", "UPDATE trajectories SET reward = 1"),
        ("tba_api", "DELETE FROM trajectories"),
        ("tba_api", "INSERT INTO payloads VALUES (1, 'main', '', '', '')"),
        ("tba_api", "UPDATE issues SET state = 'settled'"),
        ("tba_api", "UPDATE runs SET policy_version = 9"),
        ("tba_api", "UPDATE decks SET dealt = 0"),
        ("tba_api", "SELECT * FROM leases"),
        ("tba_api", "UPDATE gradings SET result = '[]'"),
        ("tba_api", "DELETE FROM tasks"),
        ("tba_api", "INSERT INTO draws VALUES ('main', 1, 0, 0, 1, 0, 0, 1, 0)"),
        ("tba_api", "SELECT nextval('trajectory_ids')"),
        ("tba_buffer", "SELECT * FROM idempotency_keys"),
        ("tba_buffer", "INSERT INTO tasks (run_id, name, spec) VALUES ('main', 'x', '{}')"),
        ("tba_buffer", "UPDATE tasks SET spec = '{}'"),
        ("tba_buffer", "UPDATE prompts SET text = 'x'"),
        ("tba_buffer", "INSERT INTO gradings (run_id, request) VALUES ('main', '{}')"),
        ("tba_buffer", "INSERT INTO scale_overrides VALUES ('main', 9, now())"),
        ("tba_buffer", "DELETE FROM rescores"),
        ("tba_buffer", "UPDATE scale_decisions SET desired = 9"),
        ("tba_reader", "SELECT * FROM idempotency_keys"),
        *(("tba_reader", f"DELETE FROM {table}") for table in TABLES),
        ("tba_reader", "INSERT INTO runs (run_id) VALUES ('mine')"),
    ],
)
def test_what_is_another_s_work_is_refused(migrated: str, role: str, statement: str) -> None:
    assert allowed(migrated, role, statement) == []


def test_a_reader_sees_trajectories_and_their_texts(migrated: str) -> None:
    query = "SELECT text FROM trajectories JOIN payloads USING (trajectory_id)"
    assert allowed(migrated, "tba_reader", query) == [query]


@pytest.mark.parametrize("role", ["tba_api", "tba_buffer"])
def test_who_opens_a_run_makes_its_partitions_and_may_not_touch_them(migrated: str, owner: Engine, role: str) -> None:
    before = partitions(owner)
    working = create_engine(as_role(migrated, role), poolclass=NullPool)
    with working.begin() as connection:
        row = {"run_id": f"run-{role}".replace("_", "-")}
        connection.execute(text("INSERT INTO runs (run_id) VALUES (:run_id)"), row)
    made = partitions(owner) - before
    assert len(made) == 2
    touching = [change.format(name) for name in made for change in ("SELECT * FROM {}", "DROP TABLE {}")]
    assert allowed(migrated, role, *touching) == []


def partitions(engine: Engine) -> set[str]:
    """The tables that hold a run's trajectories and payloads."""
    names = "SELECT relid::regclass::text FROM pg_partition_tree('{}') WHERE isleaf"
    with engine.connect() as connection:
        return {n for table in ("trajectories", "payloads") for n in connection.scalars(text(names.format(table)))}


def test_a_run_with_a_name_that_no_service_has_is_refused(owner: Engine) -> None:
    for name in ("", "Main", "a" * 64, "x'); DROP TABLE runs; --"):
        with pytest.raises(Exception, match="ck_runs_run_id"), owner.begin() as connection:
            ensure_run(connection, name)


def test_nobody_hangs_the_function_of_the_owner_on_a_table_of_his_own(migrated: str) -> None:
    trigger = "CREATE TRIGGER mine AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION open_run()"
    assert allowed(migrated, "tba_buffer", f"CREATE TEMPORARY TABLE mine (run_id text); {trigger}") == []


def test_a_migration_takes_back_what_was_granted_by_hand(migrated: str, owner: Engine) -> None:
    before = {role: granted(owner, role) for role in ROLES}
    with owner.begin() as connection:
        connection.execute(text("GRANT ALL ON ALL TABLES IN SCHEMA public TO tba_reader"))
        connection.execute(text("GRANT UPDATE (reward) ON trajectories TO tba_api"))
        connection.execute(text("REVOKE SELECT ON tasks FROM tba_buffer"))
    migrate(migrated)
    assert {role: granted(owner, role) for role in ROLES} == before


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server without the roles, and a user with a database and no right to make any."""
    with postgres.running(tmp_path_factory.mktemp("managed")) as url:
        with psycopg.connect(url_of(url), autocommit=True) as connection:
            connection.execute("CREATE ROLE plain LOGIN PASSWORD 'sesame'")
            connection.execute("CREATE DATABASE tba OWNER plain")
        yield postgres.create_database(url, "tba")


def test_who_may_not_make_roles_migrates_all_the_same_and_is_told_what_is_missing(managed: str) -> None:
    plain = make_url(managed).set(username="plain", password="sesame").render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-m", "services.buffer", "migrate"],
        env={"TBA_DATABASE_URL": plain, "TBA_LOG_FORMAT": "json"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert '"roles": "tba_api, tba_buffer, tba_reader"' in done.stderr
    assert "python -m services.buffer roles" in done.stderr
    command = [sys.executable, "-m", "services.buffer", "roles"]
    script = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout
    make_logins(managed)
    engine = create_engine(as_role(managed, "tba_api"), poolclass=NullPool)
    with pytest.raises(SchemaError, match="may not read the tables"):
        require_head(engine)
    with psycopg.connect(url_of(managed), autocommit=True) as connection:
        connection.execute(script)
    require_head(engine)
