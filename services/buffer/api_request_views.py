"""What the API answers about requests that the buffer fulfils: dead letters, gradings, re-scorings, seeds, lineage."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from services.buffer.api_views import ScoreView, View
from tba_common.tasks import Combination, ScorerTerm


class DeadLetterView(View):
    """A message that could not be handled, with the reason. Its body is shown by itself only."""

    dead_letter_id: int
    service: str = Field(examples=["tba-reward-verifier"])
    reason: str
    topic: str = Field(examples=["tba.rollouts.verifier"])
    task: str | None = Field(description="null where the message did not say what it belongs to")
    purpose: Literal["train", "eval", "grade", "rescore"] | None
    issue_id: int | None
    replay: Literal["none", "asked", "sent", "refused"] = Field(
        description="sent: its order is in flight again; a second failure is a new dead letter"
    )
    replay_fault: str | None
    created_at: datetime


class DeadLetterDetail(DeadLetterView):
    """A dead letter with its body. It may hold anything: treat every text in it as hostile."""

    partition: int
    offset: int
    schema_header: str
    size_bytes: int
    message: dict[str, Any] | None = Field(description="the body, where it decodes; arrays as lists")
    body: str | None = Field(description="the start of a body that does not decode: ASCII, the rest escaped")
    undecodable: str | None = Field(description="why it does not decode")


class GradeScores(View):
    """What one given completion is worth."""

    reward: float
    scores: tuple[ScoreView, ...]
    responses: tuple[str, ...] = Field(description="what a victim answered to it, if one took part")


class GradingView(View):
    """Given completions on their way through a reward, and what they are worth once they are back."""

    grading_id: int
    state: Literal["pending", "done", "failed"]
    task: str | None
    completions: tuple[GradeScores, ...] = Field(description="in the order they were given; empty until done")
    fault: str | None = Field(description="why there is no result; replay its dead letter to try again")
    created_at: datetime
    settled_at: datetime | None


class GradingSummary(View):
    """A grading in a list. Its texts are hostile."""

    grading_id: int
    state: Literal["pending", "done", "failed"]
    task: str | None = Field(description="whose reward it is; null where the request brought one")
    prompt: str
    rewards: tuple[float, ...] = Field(description="of the completions, in their order; empty until done")
    fault: str | None
    created_at: datetime
    settled_at: datetime | None


class ValidatedReward(View):
    """A reward that fits and whose scorers are deployed."""

    reward: tuple[ScorerTerm, ...]
    combination: Combination
    scorers: tuple[str, ...] = Field(description="in the order they are visited")


class RescoreView(View):
    """A task's stored trajectories on their way through their scorers again."""

    rescore_id: int
    task: str
    state: Literal["waiting", "running", "done"] = Field(
        description="waiting: until what was ordered before has come back"
    )
    requested_by: str
    reward: tuple[ScorerTerm, ...]
    combination: Combination
    total: int | None = Field(description="trajectories chosen; null while waiting")
    rescored: int
    failed: int = Field(description="that keep their old reward; their dead letters say why")
    changed: int = Field(description="whose reward is another one now")
    mean_old_reward: float | None = Field(description="of the rescored ones")
    mean_new_reward: float | None
    created_at: datetime
    closed_at: datetime | None


class SeedsView(View):
    """Known answers that will be scored and stored like sampled ones."""

    task: str
    accepted: int
