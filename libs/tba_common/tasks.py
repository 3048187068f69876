"""What a task is: data, a reward made of scorer terms, a way of sampling, and a target distribution.

A task says what the policy should become; how fast a machine gets there is a setting of a service.
Everything here is validated at the border of the REST API and trusted from there on.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Family = Literal["math", "preference", "redteam"]

#: Scorers a task may name. Each is a process `python -m services.reward <scorer>` with its own topic.
SCORERS: Final = ("verifier",)

MAX_TEXT_CHARACTERS: Final = 65_536


class Frozen(BaseModel):
    """A value that cannot change and refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ScorerTerm(Frozen):
    """One term of a reward: `weight * score`, the score computed by `scorer` with its `options`.

    Whether the scorer exists is asked where tasks are posted: a process that is older than a scorer must still
    be able to read and pass on what names it.
    """

    scorer: str = Field(examples=["verifier"])
    weight: float = Field(default=1.0, ge=-1_000, le=1_000)
    options: dict[str, Any] = Field(default_factory=dict, examples=[{"match": "exact"}])


class Exploration(Frozen):
    """Off-policy sampling: with `probability`, a group is sampled at a temperature and top-p drawn uniformly.

    TB is valid for any sampler with full support, so exploring costs no correction (arXiv:2503.18929, 4.1).
    """

    probability: float = Field(default=0.3, ge=0, le=1)
    temperature_low: float = Field(default=0.7, gt=0, le=5)
    temperature_high: float = Field(default=1.1, gt=0, le=5)
    top_p_low: float = Field(default=1.0, gt=0, le=1)
    top_p_high: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Exploration:
        if self.temperature_low > self.temperature_high:
            raise ValueError(f"temperature_low {self.temperature_low} > temperature_high {self.temperature_high}")
        if self.top_p_low > self.top_p_high:
            raise ValueError(f"top_p_low {self.top_p_low} > top_p_high {self.top_p_high}")
        return self


class Sampling(Frozen):
    """How completions of a prompt are drawn.

    `temperature` also defines the policy that is trained: log-probabilities on both sides of the objective
    are those of the tempered distribution. 0 means greedy and is for evaluation only.
    """

    completions: int = Field(default=16, ge=1, le=1_024, description="completions per prompt (S)")
    temperature: float = Field(default=1.0, ge=0, le=5)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=64, ge=1, le=32_768)
    exploration: Exploration | None = None


class Target(Frozen):
    """The target distribution `pi_ref(y|x) exp(r(x,y)/beta)` and how beta gets there.

    beta moves linearly from `beta_start` to `beta` over the task's first `anneal_steps` optimiser steps
    (arXiv:2503.18929, section 3.3); equal values or 0 steps keep it constant.
    """

    beta: float = Field(default=0.05, gt=0, le=100)
    beta_start: float | None = Field(default=None, gt=0, le=100)
    anneal_steps: int = Field(default=0, ge=0)


class Evaluation(Frozen):
    """How held-out prompts are answered: once and greedily, or several times at a temperature.

    The mean over samples is the accuracy of the policy itself, and steadier where few prompts are held out.
    """

    completions: int = Field(default=1, ge=1, le=1_024, description="answers per held-out prompt")
    temperature: float = Field(default=0.0, ge=0, le=5, description="0: greedy")

    @model_validator(mode="after")
    def _answers_differ(self) -> Evaluation:
        if self.temperature == 0 and self.completions > 1:
            raise ValueError(f"completions expected 1 at temperature 0, where all are alike, got {self.completions}")
        return self


class PromptSpec(Frozen):
    """One prompt as it is posted: text for the policy, the reference answer for the scorers."""

    text: str = Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)
    reference: str | None = Field(default=None, max_length=MAX_TEXT_CHARACTERS)
    key: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="client id, unique in the task: a retry adds nothing",
    )
    split: Literal["train", "eval"] = "train"
    metadata: dict[str, Any] = Field(default_factory=dict)


TaskName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$", examples=["addition"])]


class Task(Frozen):
    """Everything about a task except its prompts."""

    name: TaskName
    family: Family = "math"
    reward: tuple[ScorerTerm, ...] = Field(min_length=1, max_length=16)
    prompt_format: Literal["text", "chat"] = Field(
        default="text",
        description="chat: the text is one user message, wrapped by the policy's chat template",
    )
    sampling: Sampling = Sampling()
    target: Target = Target()
    eval_fraction: float = Field(
        default=0.0,
        ge=0,
        le=0.9,
        description="share of train prompts moved to the eval split, by hash of the text",
    )
    evaluation: Evaluation = Evaluation()
    evaluate_every_versions: int = Field(default=0, ge=0, description="0: only when asked")

    @field_validator("sampling")
    @classmethod
    def _explores(cls, sampling: Sampling) -> Sampling:
        if sampling.temperature == 0:
            raise ValueError("temperature expected above 0 to train, got 0; evaluation is greedy by itself")
        return sampling

    @field_validator("reward")
    @classmethod
    def _scorers_differ(cls, reward: tuple[ScorerTerm, ...]) -> tuple[ScorerTerm, ...]:
        scorers = [term.scorer for term in reward]
        if len(set(scorers)) != len(scorers):
            raise ValueError(f"each scorer expected once in a reward, got {scorers}")
        return reward
