"""Who may do what: a role for each process that connects, and one for people; none of them may change the schema.

The roles have no login. An operator makes logins in them: CREATE ROLE name LOGIN PASSWORD '...' IN ROLE tba_api.
What is granted follows the law of the schema: it only grows, until no program of the version before needs it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection
from sqlalchemy.exc import ProgrammingError

from services.buffer.schema import metadata

_VERSION: Final = "alembic_version"
_SEEN: Final = dict.fromkeys((*metadata.tables, _VERSION), "SELECT")

#: What takes tasks in and shows everything. The line's own tables it only reads, the sampler's memory not even that.
_API: Final = _SEEN | {
    "runs": "SELECT, INSERT (run_id)",
    "tasks": "SELECT, INSERT, UPDATE (state, spec)",
    "prompts": "SELECT, INSERT",
    "evaluation_requests": "SELECT, INSERT",
    "gradings": "SELECT, INSERT",
    "rescores": "SELECT, INSERT",
    "seeds": "SELECT, INSERT",
    "dead_letters": "SELECT, DELETE, UPDATE (replay_asked_at, replay_fault)",
    "scale_decisions": "SELECT, INSERT, UPDATE",
    "scale_overrides": "SELECT, INSERT, UPDATE, DELETE",
    "idempotency_keys": "SELECT, INSERT, UPDATE, DELETE",
    "decks": "",
    "input_offsets": "",
    "leases": "",
    "sampler_state": "",
}

#: The writer of the line. Of a wish it writes only what came of it. It deletes what is too old (retention.py).
_BUFFER: Final = _SEEN | {
    "runs": "SELECT, INSERT (run_id), UPDATE (policy_version, step, checkpoint_batch_id, status, status_at)",
    "tasks": "SELECT, UPDATE (task_steps)",
    "prompts": "SELECT, UPDATE (issues, token_ids)",
    "evaluation_requests": "SELECT, INSERT, UPDATE (issued_at)",
    "gradings": "SELECT, DELETE, UPDATE (issue_id, result, fault, settled_at)",
    "rescores": "SELECT, UPDATE (through_issue_id, total, sent, after_prompt_id, after_trajectory_id, closed_at)",
    "rescored": "SELECT, INSERT, UPDATE",
    "seeds": "SELECT, UPDATE (issue_id)",
    "issues": "SELECT, INSERT, UPDATE",
    "trajectories": "SELECT, INSERT, UPDATE, DELETE",
    "payloads": "SELECT, INSERT, UPDATE, DELETE",
    "evaluations": "SELECT, INSERT",
    "batches": "SELECT, INSERT, UPDATE, DELETE",
    "draws": "SELECT, INSERT, DELETE",
    "steps": "SELECT, INSERT, UPDATE",
    "versions": "SELECT, INSERT",
    "dead_letters": "SELECT, INSERT, DELETE, UPDATE (replayed_at, replay_fault)",
    "decks": "SELECT, INSERT, UPDATE",
    "input_offsets": "SELECT, INSERT, UPDATE",
    "leases": "SELECT, INSERT, UPDATE",
    "sampler_state": "SELECT, INSERT, UPDATE",
    "idempotency_keys": "",
    "scale_decisions": "SELECT, DELETE",
    "scale_overrides": "",
}

#: For dashboards and people. It sees the texts of red-team tasks, which the API shows to the second key only.
_READER: Final = _SEEN | {"idempotency_keys": ""}

#: By role: what it may do with each table, as GRANT says it; an empty string is nothing.
GRANTS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {"tba_api": _API, "tba_buffer": _BUFFER, "tba_reader": _READER}
)
_SEQUENCES: Final = {"tba_buffer": "trajectory_ids"}  # identities need no grant

_CREATE: Final = """\
DO $$ BEGIN
    CREATE ROLE {role} NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; -- databases of one server share their roles
END $$;"""

log = logging.getLogger(__name__)


def grant(connection: Connection) -> None:
    """Make the roles, and give each exactly what it needs, in the caller's transaction at the newest revision.

    A role that is missing and that this user may not make is left out, and the log says so: with managed servers
    that is an administrator's work.
    """
    missing = [role for role in GRANTS if not _exists(connection, role) and not _made(connection, role)]
    for role in GRANTS.keys() - missing:
        connection.exec_driver_sql("\n".join(_grants(role)))
    if missing:
        log.warning(
            "roles are missing, and this user may not make them: let an administrator run what"
            " `python -m services.buffer roles` prints; until then only the schema's owner can connect",
            extra={"roles": ", ".join(missing)},
        )


def script() -> str:
    """Return all of it as SQL for an administrator of a migrated database."""
    made = [_CREATE.format(role=role) for role in GRANTS]
    return "\n".join(["BEGIN;", *made, *(line for role in GRANTS for line in _grants(role)), "COMMIT;"])


def main() -> None:
    """Print that SQL."""
    sys.stdout.write(f"{script()}\n")


def _grants(role: str) -> Iterator[str]:
    granted = GRANTS[role]
    yield f"REVOKE ALL ON {', '.join(granted)} FROM {role};"
    yield from (f"GRANT {privileges} ON {table} TO {role};" for table, privileges in granted.items() if privileges)
    if sequence := _SEQUENCES.get(role):
        yield f"GRANT USAGE ON SEQUENCE {sequence} TO {role};"


def _exists(connection: Connection, role: str) -> bool:
    return connection.exec_driver_sql("SELECT FROM pg_roles WHERE rolname = %s", (role,)).first() is not None


def _made(connection: Connection, role: str) -> bool:
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(_CREATE.format(role=role))
    except ProgrammingError as error:
        if not isinstance(error.orig, InsufficientPrivilege):
            raise
        return False
    return True
