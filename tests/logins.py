"""The users that the platform's processes connect as, on the server of the tests: what is not granted shows there."""

from __future__ import annotations

from typing import Final

from sqlalchemy import make_url

from tba_cli.local import postgres

ROLES: Final = ("tba_api", "tba_buffer", "tba_reader")
_PASSWORD: Final = "sesame"


def make_logins(server_url: str) -> None:
    """Make a user in each role."""
    for role in ROLES:
        postgres.create_login(server_url, role, _PASSWORD)


def as_role(url: str, role: str) -> str:
    """A database's URL for the user in a role."""
    user = make_url(url).set(username=f"{role}_login", password=_PASSWORD)
    return user.render_as_string(hide_password=False)
