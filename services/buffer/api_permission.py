"""The second lock: red-team tasks hold attacks that work, so to post or read them needs more than the API key.

With keys it is a key of its own, which opens everything else too. Without keys, on loopback, it is a setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from sqlalchemy import ColumnElement, true

from services.buffer.api_context import Shared
from services.buffer.api_faults import FieldError
from services.buffer.api_settings import ApiSettings
from services.buffer.problems import Problem
from services.buffer.tables import tasks

_GUARDED: Final = "redteam"


@dataclass(frozen=True)
class Permission:
    """What the asker of one request may see."""

    redteam: bool
    expected: str  # what a request without it lacks

    def need(self, family: str | None) -> None:
        """Refuse a request about a task of this family that is not permitted.

        Raises:
            Problem: the family is guarded, and the request came without its permission.
        """
        if family == _GUARDED and not self.redteam:
            fault = FieldError(field="header:Authorization", expected=self.expected, got="a request without it")
            raise Problem("redteam-forbidden", fault)

    def visible(self) -> ColumnElement[bool]:
        """The rows of `tasks` whose texts may be shown."""
        return true() if self.redteam else tasks.c.spec["family"].astext != _GUARDED

    def hides(self, spec: dict[str, Any] | None) -> bool:
        """Say whether the texts of a task, or of an unknown one, stay hidden."""
        return not self.redteam and (spec is None or spec["family"] == _GUARDED)


def _permission(request: Request, context: Shared) -> Permission:
    return Permission(bool(request.scope["state"].get("may_redteam", False)), _expected(context.settings))


def _expected(settings: ApiSettings) -> str:
    if settings.api_key is None:
        return "permission for red-team tasks: start the API with TBA_ALLOW_REDTEAM=true"
    if settings.api_redteam_key is None:
        return "the red-team key: start the API with TBA_API_REDTEAM_KEY"
    return "Bearer and the red-team key"


Permitted = Annotated[Permission, Depends(_permission)]
