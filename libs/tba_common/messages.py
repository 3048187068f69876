"""The nouns of the line, in the order they travel: prompt, rollout, trajectories, group, step, weights.

Token ids are truth: the generator tokenizes once and nobody after it does. A policy version is an integer,
stamped from what the engine really had loaded. Messages are frozen; readers accept the previous version.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tba_common.tasks import Combination, Sampling, ScorerTerm, Target


def _packed(dtype: type[np.generic]) -> BeforeValidator:
    def coerce(value: Any) -> Any:
        try:
            array = np.array(value, dtype=dtype)
        except (ValueError, TypeError):
            raise ValueError("expected a flat array of numbers") from None  # numpy's own words quote what came
        if array.ndim != 1:
            raise ValueError(f"expected a flat array, got shape {array.shape}")
        array.setflags(write=False)
        return array

    return BeforeValidator(coerce)


#: Why an order was made.
Purpose = Literal["train", "eval", "grade", "rescore"]

Int32s = Annotated[np.ndarray[Any, np.dtype[np.int32]], _packed(np.int32)]
Float32s = Annotated[np.ndarray[Any, np.dtype[np.float32]], _packed(np.float32)]


class Part(BaseModel):
    """A frozen piece of a message, equal by value; fields added later carry defaults."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and _comparable(self) == _comparable(other)

    __hash__ = None  # type: ignore[assignment]  # arrays inside: equal by value, never a dictionary key


class Message(Part):
    """What travels on a topic: a part with a schema name and version, of one run."""

    schema_version: ClassVar[int] = 1

    run_id: str


def _comparable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, BaseModel):
        return {name: _comparable(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {name: _comparable(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_comparable(item) for item in value]
    return value


class Prompt(Message):
    """One issue of one prompt: the order to sample its completions. Travels on `tba.prompts`.

    `issue_id` names the order; a second attempt at it carries the same id, so its result is a known duplicate.
    An evaluation names the policy version it must be sampled with. An order to grade given texts, or to score
    stored trajectories again, never visits a generator: it starts as a rollout. Completions that are `given` are
    tokenised as they are, and not sampled.
    """

    schema_version: ClassVar[int] = 2  # 2: combination, system, purposes grade and rescore
    issue_id: int
    attempt: int = 1
    task_id: int
    prompt_id: int
    purpose: Purpose = "train"
    policy_version: int | None = None
    text: str
    system: str | None = None
    reference: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    prompt_format: Literal["text", "chat"] = "text"
    sampling: Sampling
    reward: tuple[ScorerTerm, ...]
    combination: Combination = Combination()
    given: tuple[str, ...] = ()


class Completion(Part):
    """One sampled answer. `token_ids` holds the EOS token exactly once if the policy ended by itself.

    `logprobs` are natural logarithms under the distribution really sampled from (after temperature and
    top-p), one per token. `policy_version` is the oldest version that produced any of the tokens. `spans` says
    how many tokens in a row each version produced where weights were swapped on the way; empty where one did all.
    """

    token_ids: Int32s  # [length]
    logprobs: Float32s  # [length]
    text: str
    finish_reason: Literal["eos", "length"]
    policy_version: int
    spans: tuple[tuple[int, int], ...] = ()  # (policy version, tokens), in the order of the tokens

    @model_validator(mode="after")
    def _lengths_agree(self) -> Completion:
        if len(self.token_ids) != len(self.logprobs):
            raise ValueError(f"{len(self.token_ids)} token_ids but {len(self.logprobs)} logprobs")
        if self.spans and sum(tokens for _, tokens in self.spans) != len(self.token_ids):
            raise ValueError(f"{len(self.token_ids)} token_ids but spans of {self.spans}")
        return self


class Score(Part):
    """What one scorer said about each completion of a rollout, in the same order.

    `details` are further figures of the same visit, by name; they are reported and never part of a reward.
    """

    scorer: str
    version: str
    values: Float32s  # [completions]
    seconds: float
    attempts: int = 1
    details: dict[str, Float32s] = Field(default_factory=dict)  # each [completions]


class Retry(Part):
    """Why a rollout comes by `tba.retries.<scorer>`: visits to that scorer that failed, and when to make the next."""

    rounds: int = Field(ge=1, description="times it was sent there")
    attempts: int = Field(ge=1, description="visits that failed, in all rounds")
    not_before: float = Field(description="Unix time in seconds")


class Rollout(Message):
    """One prompt's completions, and the routing slip: scores so far, scorers still to visit.

    Travels on `tba.rollouts.<scorer>` of the first scorer in `remaining`. `responses` are what a victim answered to
    each completion, for the scorers after it.
    """

    schema_version: ClassVar[int] = 3  # 3: responses, details of scores; 2: completions carry spans
    prompt: Prompt
    prompt_token_ids: Int32s  # [prompt_length]
    completions: tuple[Completion, ...]
    temperature: float  # what the group was really sampled with: exploration may have moved it
    top_p: float
    generator: str
    scores: tuple[Score, ...] = ()
    responses: tuple[tuple[str, ...], ...] = ()  # [completions][samples]
    remaining: tuple[str, ...]
    seconds: float = 0.0  # that sampling took; with those of the scores, what of a turnaround was work, not waiting
    retry: Retry | None = None


class Trajectories(Message):
    """A rollout whose every completion has its reward: what the buffer stores. Travels on `tba.trajectories`."""

    schema_version: ClassVar[int] = 3
    rollout: Rollout
    rewards: Float32s  # [completions]

    @model_validator(mode="after")
    def _one_reward_each(self) -> Trajectories:
        if len(self.rewards) != len(self.rollout.completions):
            raise ValueError(f"{len(self.rollout.completions)} completions but {len(self.rewards)} rewards")
        return self


class Draw(Part):
    """One trajectory drawn from the buffer, with the probability it was drawn with."""

    trajectory_id: int
    token_ids: Int32s  # [length]
    logprobs: Float32s  # [length]
    reward: float
    policy_version: int
    draw_logprob: float  # log P(this draw | prompt, draws before it in the group)
    ref_logprob: float | None = None  # sum under the reference, where a `reference` scorer computed it


class Group(Message):
    """K trajectories of one prompt, drawn together. `size` groups with one `batch_id` make a batch.

    Batches are numbered from 1 without gaps and the learner trains them in that order, one optimiser step
    each. Travels on `tba.batches`.
    """

    schema_version: ClassVar[int] = 2  # 2: ref_logprob of draws, gamma, temperature and baseline of targets
    batch_id: int
    index: int  # 0 .. size-1
    size: int
    task_id: int
    task_step: int  # optimiser steps this task has been part of before this batch
    prompt_id: int
    kind: Literal["online", "offline", "fallback"]
    prompt_token_ids: Int32s
    temperature: float  # of the policy that is trained
    target: Target
    draws: tuple[Draw, ...]


class Step(Message):
    """One optimiser step, as the learner reports it on `tba.steps`. Means are over the batch's trajectories."""

    schema_version: ClassVar[int] = 2  # 2: skipped
    step: int
    batch_id: int
    policy_version: int  # newest published version at the time of the step
    checkpoint_batch_id: int  # batches up to here survive a crash of the learner
    loss: float
    reward: float
    log_z: float
    log_ratio: float  # mean of log pi - log pi_ref
    grad_norm: float
    beta: float
    learning_rate: float
    trajectories: int
    tokens: int
    staleness_versions: dict[int, int]  # policy_version - trajectory's version -> trajectories
    step_seconds: float
    wait_seconds: float
    skipped: bool = False  # loss or gradient was not finite: the weights did not move


class Resumed(Message):
    """The learner has trained the batches up to `batch_id` and none after it. Travels on `tba.steps`.

    Said when it starts from a checkpoint, and again when the broker may have lost that.
    """

    batch_id: int
    step: int


class Weights(Message):
    """A published policy version: a pointer, never the bytes. Travels on `tba.weights`, compacted by run."""

    version: int
    step: int
    uri: str
    digest: str  # sha256 of the manifest, which holds the sha256 of every file
    steps_per_version: int


class DeadLetter(Message):
    """A message that could not be handled, with the reason. Travels on `tba.dead_letters`."""

    service: str
    reason: str
    topic: str
    partition: int
    offset: int
    schema_header: str
    issue_id: int | None
    body: bytes


MESSAGES: tuple[type[Message], ...] = (
    Prompt,
    Rollout,
    Trajectories,
    Group,
    Step,
    Resumed,
    Weights,
    DeadLetter,
)
