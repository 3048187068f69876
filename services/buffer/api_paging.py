"""Pages of lists: what a request may ask, and the envelope it gets back. A misspelt parameter is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from services.buffer.api_views import Listing
from tba_common.tasks import TaskName

T = TypeVar("T")


class Asked(BaseModel):
    """Query parameters of a list."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskPage(Asked):
    """A page of tasks, oldest first."""

    limit: int = Field(default=100, ge=1, le=500)
    after: int = Field(default=0, ge=0, lt=2**63)


class StepPage(Asked):
    """A page of steps in order. To follow a run, ask again after the last step that came."""

    limit: int = Field(default=100, ge=1, le=1_000)
    after: int = Field(default=-1, ge=-1, lt=2**31, description="steps after this one")


class EvaluationPage(Asked):
    """A page of evaluations by policy version."""

    task: TaskName | None = Field(default=None, description="name of a task; default: all")
    limit: int = Field(default=1_000, ge=1, le=1_000)
    after: str = Field(default="0.0", pattern=r"^[0-9]{1,9}\.[0-9]{1,18}$", description="next_after of a page")


class TrajectoryPage(Asked):
    """A page of trajectories, newest first."""

    task: TaskName | None = Field(default=None, description="name of a task; default: all")
    policy_version: int | None = Field(default=None, ge=0, lt=2**31)
    min_reward: float | None = None
    max_reward: float | None = None
    limit: int = Field(default=50, ge=1, le=200)
    after: int | None = Field(default=None, ge=0, lt=2**63, description="next_after of a page: goes on to older ones")


class DeadLetterPage(Asked):
    """A page of dead letters, newest first."""

    service: str | None = Field(default=None, pattern=r"^[a-z0-9._-]{1,100}$", description="that could not handle it")
    task: TaskName | None = Field(default=None, description="name of a task; default: all")
    reason: str | None = Field(
        default=None, min_length=1, max_length=200, pattern=r"^[^\x00]+$", description="a part of the reason"
    )
    limit: int = Field(default=50, ge=1, le=200)
    after: int | None = Field(default=None, ge=0, lt=2**63, description="next_after of a page: goes on to older ones")


class RequestPage(Asked):
    """A page of a task's re-scorings, or of gradings, newest first."""

    limit: int = Field(default=50, ge=1, le=200)
    after: int | None = Field(default=None, ge=0, lt=2**63, description="next_after of a page: goes on to older ones")


def page(views: Sequence[T], cursors: Sequence[str], limit: int) -> Listing[T]:
    """Cut one row too many off, and say where the next page begins; `cursors` has one entry a row."""
    has_more = len(views) > limit
    return Listing(data=tuple(views[:limit]), has_more=has_more, next_after=cursors[limit - 1] if has_more else None)
