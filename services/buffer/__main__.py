"""`python -m services.buffer`: the REST API, the buffer itself, or the migration of the database."""

from __future__ import annotations

import argparse


def main() -> None:
    """Run one of the room's processes."""
    parser = argparse.ArgumentParser(prog="python -m services.buffer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("api", help="serve the REST API and the dashboard (TBA_API_ADDRESS)")
    commands.add_parser("serve", help="feed prompts, take in trajectories, draw batches; one is active per run")
    commands.add_parser("migrate", help="bring the schema of TBA_DATABASE_URL to this version, then exit")
    commands.add_parser("roles", help="print the SQL that makes the roles of least privilege, for an administrator")
    commands.add_parser("await-schema", help="wait until somebody has migrated it, then exit")
    command = parser.parse_args().command
    # Imported here so that `--help` needs neither a web server nor a database driver.
    if command == "api":
        from services.buffer.api import main as run
    elif command == "serve":
        from services.buffer.process import main as run
    elif command == "migrate":
        from services.buffer.migrations import main as run
    elif command == "roles":
        from services.buffer.migrations.roles import main as run
    else:
        from services.buffer.migrations import wait_for_schema as run
    run()


if __name__ == "__main__":
    main()
