"""What the API answers with: one frozen model per noun, so that OpenAPI, the page and the CLI agree."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from tba_common.messages import Step
from tba_common.tasks import Task

T = TypeVar("T")


class View(BaseModel):
    """A value that is only ever read."""

    model_config = ConfigDict(frozen=True)


class Listing(View, Generic[T]):
    """One page of a list; pass `next_after` as `after` to go on."""

    data: tuple[T, ...]
    has_more: bool
    next_after: str | None = Field(description="cursor of the next page; null when this is the last")


class Progress(View):
    """How far a task has come."""

    prompts_train: int
    prompts_eval: int
    issues: int = Field(description="times a prompt was given to the generators for training")
    trajectories: int = Field(description="scored completions stored in the buffer")
    recent_mean_reward: float | None = Field(
        description="over this task's part of the newest 2,000 trajectories of the run; null when it has none there"
    )
    task_steps: int = Field(description="optimiser steps this task has been part of")


class TaskView(View):
    """A task, and how far it has come."""

    task_id: int
    name: str
    state: Literal["active", "paused"]
    created_at: datetime
    spec: Task
    progress: Progress


class PostedPrompt(View):
    """What became of one posted prompt."""

    prompt_id: int
    split: Literal["train", "eval"]
    created: bool = Field(description="false: this key was posted before, nothing was added")


class PostedPrompts(View):
    """The prompts of a request, in its order."""

    data: tuple[PostedPrompt, ...]
    created: int


class EvaluationRequest(View):
    """An evaluation that was accepted: every held-out prompt of the task, with one policy version."""

    task: str
    policy_version: int
    prompts: int
    created: bool = Field(description="false: this version's evaluation was asked for before")


class EvaluationView(View):
    """The held-out prompts of a task under one policy version. Complete when `n + n_lost` equals `n_expected`."""

    task: str
    policy_version: int
    n: int = Field(description="answers scored so far")
    n_lost: int = Field(description="answers that could not be scored and will not come")
    n_expected: int
    mean_reward: float | None
    accuracy: float | None = Field(description="share of the scored answers whose reward is at least 1")
    scores: dict[str, float] = Field(
        description="mean value of each scorer, and of each of its details as `scorer.detail`",
        examples=[{"verifier": 0.75}],
    )
    pass_at: dict[int, float] = Field(
        description="k -> unbiased pass@k (arXiv:2107.03374): one of k answers has a reward of at least 1",
        examples=[{1: 0.5, 2: 0.75}],
    )
    kl: float | None = Field(
        description="mean of the answers' summed log-probability less that under the reference; "
        "null where no `reference` scorer took part"
    )


class StepView(Step):
    """One optimiser step, as the learner reported it."""

    created_at: datetime


class ScoreView(View):
    """What one scorer said about a trajectory."""

    scorer: str
    version: str
    value: float
    seconds: float
    attempts: int = 1
    details: dict[str, float] = Field(default_factory=dict, description="further figures, no part of the reward")


class TrajectoryView(View):
    """One scored completion. Its texts are what a model wrote: treat them as hostile."""

    trajectory_id: int
    task: str
    prompt_id: int
    policy_version: int
    reward: float
    scores: tuple[ScoreView, ...]
    prompt: str
    text: str
    tokens: int
    finish_reason: str
    temperature: float
    top_p: float
    created_at: datetime


class DrawView(View):
    """One time that a trajectory was drawn into a batch; `step` is null until the batch is trained."""

    batch_id: int
    group_index: int
    position: int
    draw_logprob: float = Field(description="given the draws before it in its group")
    marginal_logprob: float = Field(description="of a single draw from the whole prompt")
    reward: float = Field(description="as drawn; the same tokens may have been scored again since")
    policy_version: int
    step: int | None
    trained_at: datetime | None


class Span(View):
    """Tokens in a row that one policy version wrote."""

    policy_version: int
    tokens: int


class RescoreAudit(View):
    """One time that a trajectory was scored again."""

    rescore_id: int
    requested_by: str
    asked_at: datetime
    settled_at: datetime | None
    old_reward: float
    new_reward: float | None
    old_scorers: dict[str, str] = Field(description="scorer -> version", examples=[{"verifier": "1"}])
    new_scorers: dict[str, str]
    fault: str | None


class TrajectoryDetail(TrajectoryView):
    """A trajectory with where it comes from and everything that happened to it."""

    reference: str | None
    prompt_metadata: dict[str, Any]
    issue_id: int
    attempt: int
    issued_at: datetime
    token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...] = Field(description="natural logarithms; null where not finite")
    spans: tuple[Span, ...] = Field(description="in the order of the tokens")
    draws: tuple[DrawView, ...]
    rescores: tuple[RescoreAudit, ...] = Field(description="oldest first")


class Staleness(View):
    """Policy version of the learner minus that of a trained trajectory, over the last 50 steps."""

    mean_versions: float | None
    histogram: dict[int, int] = Field(description="versions -> trajectories", examples=[{0: 310, 1: 202}])


class Rates(View):
    """What happened in the last minute, as the buffer service counted it."""

    trajectories_per_minute: int = 0
    steps_per_minute: int = 0


class Queues(View):
    """What is on its way between services."""

    prompts_in_flight: int = Field(description="with the generators and scorers, completions not yet back")
    oldest_prompt_seconds: float | None
    batches_in_flight: int = Field(description="drawn from the buffer, not yet trained")
    evaluations_waiting: int = Field(description="asked for, not yet given to the generators")
    dead_letters: int = Field(description="messages that could not be handled; GET /v1/dead-letters has their reasons")


class LedgerView(View):
    """Completions ordered from the generators for training, and what became of each."""

    issued: int
    stored: int
    duplicates: int
    dead_lettered: int
    expired: int
    in_flight: int
    balances: bool = Field(description="issued = stored + duplicates + dead_lettered + expired + in_flight")


class BufferView(View):
    """The buffer service, as it last said of itself."""

    trajectories: int = Field(default=0, description="that can be drawn")
    ready_prompts: int = Field(default=0, description="prompts with enough trajectories to be drawn")
    blocked: str | None = Field(
        default=None, description="why no batch can be drawn; null when one can", examples=["min_size"]
    )
    silent_seconds: float | None = Field(default=None, description="age of what it said; null before it ever did")


class StatusView(View):
    """The run at one glance."""

    run_id: str
    policy_version: int | None = Field(description="newest published; null before the first")
    step: int
    state: Literal["running", "waiting", "stalled"] = Field(description="stalled: a person should look")
    waiting_for: str = Field(description="one sentence: what the line waits for")
    tasks_active: int
    tasks_paused: int
    staleness: Staleness
    rates: Rates
    queues: Queues
    buffer: BufferView
    ledger: LedgerView
