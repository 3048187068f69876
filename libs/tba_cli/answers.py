"""What the REST API answers with, as the client reads it. Fields that a newer server adds are ignored."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tba_common.messages import Step
from tba_common.tasks import Task, stored_task


class Answer(BaseModel):
    """A value that is only ever read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Progress(Answer):
    """How far a task has come."""

    prompts_train: int
    prompts_eval: int
    issues: int
    trajectories: int
    recent_mean_reward: float | None
    task_steps: int


class TaskAnswer(Answer):
    """A task, and how far it has come."""

    task_id: int
    name: str
    state: Literal["active", "paused"]
    created_at: datetime
    spec: Annotated[Task, BeforeValidator(stored_task)]
    progress: Progress


class PostedPrompt(Answer):
    """What became of one posted prompt."""

    prompt_id: int
    split: Literal["train", "eval"]
    created: bool


class EvaluationRequest(Answer):
    """An evaluation that was accepted."""

    task: str
    policy_version: int
    prompts: int
    created: bool


class Evaluation(Answer):
    """The held-out prompts of a task under one policy version. Complete when `n + n_lost` equals `n_expected`."""

    task: str
    policy_version: int
    n: int
    n_lost: int
    n_expected: int
    mean_reward: float | None
    accuracy: float | None
    scores: dict[str, float] = Field(default_factory=dict)
    pass_at: dict[int, float] = Field(default_factory=dict)
    kl: float | None = None


class StepAnswer(Step):
    """One optimiser step, as the learner reported it."""

    created_at: datetime


class Trajectory(Answer):
    """One scored completion. Its texts are what a model wrote: strip them before a terminal sees them."""

    trajectory_id: int
    task: str
    prompt_id: int
    policy_version: int
    reward: float
    prompt: str
    text: str
    tokens: int
    finish_reason: str
    temperature: float
    top_p: float
    created_at: datetime


class Staleness(Answer):
    """Policy version of the learner minus that of a trained trajectory, over the last steps."""

    mean_versions: float | None
    histogram: dict[int, int]


class Rates(Answer):
    """What happened in the last minute."""

    trajectories_per_minute: int
    steps_per_minute: int


class Queues(Answer):
    """What is on its way between services."""

    prompts_in_flight: int
    oldest_prompt_seconds: float | None
    batches_in_flight: int
    evaluations_waiting: int
    dead_letters: int


class Ledger(Answer):
    """Completions ordered for training, and what became of each."""

    issued: int
    stored: int
    duplicates: int
    dead_lettered: int
    expired: int
    in_flight: int
    balances: bool


class Buffer(Answer):
    """The buffer service, as it last said of itself."""

    trajectories: int
    ready_prompts: int
    blocked: str | None
    silent_seconds: float | None


class Status(Answer):
    """The run at one glance."""

    run_id: str
    policy_version: int | None
    step: int
    state: Literal["running", "waiting", "stalled"]
    waiting_for: str
    tasks_active: int
    tasks_paused: int
    staleness: Staleness
    rates: Rates
    queues: Queues
    buffer: Buffer
    ledger: Ledger


class FieldFault(Answer):
    """One fault of a request: where, what was expected there, what came."""

    field: str
    expected: str
    got: str


class Problem(Answer):
    """A refusal (RFC 9457); as text, a sentence and one line a fault."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = ""
    errors: tuple[FieldFault, ...] = ()

    def __str__(self) -> str:
        faults = [f"  {fault.field or 'the body'}: expected {fault.expected}, got {fault.got}" for fault in self.errors]
        if not faults and self.detail:
            faults = [f"  {self.detail}"]
        return "\n".join([f"{self.title} ({self.status})", *faults])


class ScaleSignals(Answer):
    """What decides how many generators there should be. Seconds, and trajectories a second."""

    age_seconds: float
    tasks_active: int
    wait_ratio: float | None
    step_seconds: float | None
    trajectories_per_second: float
    fresh_steps: float
    stock_steps: float
    staleness_versions: float | None
    admission_capacity: int
    in_flight_prompts: int


class ScaleDecision(Answer):
    """A decision of the autoscaler, from when it was made first until it was made last."""

    desired: int
    replicas: int
    ready: int
    reason: str
    sentence: str
    applied: bool
    created_at: datetime
    decided_at: datetime


class ScaleOverride(Answer):
    """A number that holds until then."""

    replicas: int
    until: datetime


class Autoscaler(Answer):
    """What the autoscaler sees and did, the newest decision first."""

    signals: ScaleSignals | None
    override: ScaleOverride | None
    decision: ScaleDecision | None
    decisions: tuple[ScaleDecision, ...]
