"""What a task is: data, a reward made of scorer terms, a way of sampling, and a target distribution.

A task says what the policy should become; how fast a machine gets there is a setting of a service.
Everything here is validated at the border of the REST API and trusted from there on.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Family = Literal["math", "preference", "redteam"]

#: What a scorer can be. `reward_model.gold` is a second process of kind `reward_model`, with its own topic and model.
SCORER_KINDS: Final = ("verifier", "code", "reward_model", "toxicity", "victim", "judge", "reference", "diversity")
_SCORER: Final = re.compile(rf"({'|'.join(SCORER_KINDS)})(\.[a-z0-9][a-z0-9-]{{0,31}})?")

MAX_TEXT_CHARACTERS: Final = 65_536
TEXT: Final = "{text}"  # in a template, the place of a prompt's text


class Frozen(BaseModel):
    """A value that cannot change and refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def kind_of(scorer: str) -> str:
    """Return what a scorer is: `reward_model` for `reward_model.gold`."""
    return scorer.partition(".")[0]


def is_scorer_name(name: str) -> bool:
    """Say whether a name is a kind of scorer, or an instance of one."""
    return _SCORER.fullmatch(name) is not None


class ScorerTerm(Frozen):
    """One term of a reward: `weight * score`, the score computed by `scorer` with its `options`.

    Whether the scorer exists is asked where tasks are posted: a process that is older than a scorer must still
    be able to read and pass on what names it. A term of weight 0 is scored and reported, and moves nothing.
    """

    scorer: str = Field(examples=["verifier"])
    weight: float = Field(default=1.0, ge=-1_000, le=1_000)
    options: dict[str, Any] = Field(default_factory=dict, examples=[{"match": "exact"}])
    at_least: float | None = Field(
        default=None, description="rule gate: what this score must reach for the other terms to count"
    )


class Combination(Frozen):
    """How the scores of a completion become one reward.

    `sum`: r = sum of w_i s_i. `log_product`: r = sum of w_i log max(s_i, floor), the logarithm of a product of powers.
    `gate`: the sum over terms without `at_least` where every term with it reaches it, else `closed_reward`.
    A completion that is too short, or did not end by itself, has its fixed reward whatever its scores are.
    """

    rule: Literal["sum", "log_product", "gate"] = "sum"
    floor: float = Field(default=1e-6, gt=0, le=1, description="of a score under log_product")
    closed_reward: float = 0.0
    min_tokens: int = Field(default=0, ge=0, description="shorter completions, EOS counted, get `short_reward`")
    short_reward: float = Field(default=0.0, ge=-1e6, le=1e6)
    non_eos_reward: float | None = Field(
        default=None,
        ge=-1e6,
        le=1e6,
        description="of a completion cut off at max_new_tokens (-1 in arXiv:2503.18929, table 3); null: its scores",
    )


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


class Ramp(Frozen):
    """A number that moves linearly from `start` to `end` over a task's first `steps` optimiser steps."""

    start: float = Field(default=1.0, gt=0, le=1_000)
    end: float = Field(default=1.0, gt=0, le=1_000)
    steps: int = Field(default=0, ge=0)


class Target(Frozen):
    """The target distribution: log R(y|x) = (log pi_ref(y|x) / gamma + r(x,y) / beta) / temperature.

    beta moves linearly from `beta_start` to `beta` over the task's first `anneal_steps` optimiser steps
    (arXiv:2503.18929, section 3.3); equal values or 0 steps keep it constant. gamma and temperature are those of
    automated red-teaming (Lee et al., arXiv:2405.18540); at 1 the target is the paper's pi_ref exp(r / beta).
    """

    beta: float = Field(default=0.05, gt=0, le=100)
    beta_start: float | None = Field(default=None, gt=0, le=100)
    anneal_steps: int = Field(default=0, ge=0)
    gamma: Ramp = Ramp()
    temperature: Ramp = Ramp()
    baseline: Literal["prompt", "batch"] = Field(
        default="prompt",
        description="whose trajectories share one log Z: those of a prompt, or the task's whole part of a batch",
    )


class Evaluation(Frozen):
    """How held-out prompts are answered: once and greedily, or several times at a temperature.

    The mean over samples is the accuracy of the policy itself, and steadier where few prompts are held out.
    """

    completions: int = Field(default=1, ge=1, le=1_024, description="answers per held-out prompt")
    temperature: float = Field(default=0.0, ge=0, le=5, description="0: greedy")
    reward: tuple[ScorerTerm, ...] | None = Field(
        default=None, min_length=1, max_length=16, description="judged by these, summed; null: by the task's reward"
    )

    @model_validator(mode="after")
    def _answers_differ(self) -> Evaluation:
        if self.temperature == 0 and self.completions > 1:
            raise ValueError(f"completions expected 1 at temperature 0, where all are alike, got {self.completions}")
        return self

    @field_validator("reward")
    @classmethod
    def _scorers_differ(cls, reward: tuple[ScorerTerm, ...] | None) -> tuple[ScorerTerm, ...] | None:
        return reward and _each_once(reward)


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
    combination: Combination = Combination()
    template: str = Field(
        default="{text}",
        max_length=MAX_TEXT_CHARACTERS,
        description="what the policy reads, with {text} once for the prompt's text; a few-shot prefix stands here",
    )
    prompt_format: Literal["text", "chat"] = Field(
        default="text",
        description="chat: the text is one user message, wrapped by the policy's chat template",
    )
    system: str | None = Field(
        default=None, max_length=MAX_TEXT_CHARACTERS, description="system message, of prompt_format chat only"
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
        return _each_once(reward)

    @field_validator("template")
    @classmethod
    def _has_one_text(cls, template: str) -> str:
        if (times := template.count(TEXT)) != 1:
            raise ValueError(f"expected {TEXT} once, got it {times} times")
        return template

    @model_validator(mode="after")
    def _fits_together(self) -> Task:
        if self.system is not None and self.prompt_format != "chat":
            raise ValueError("system: expected only with prompt_format chat, got prompt_format text")
        gates = [term.scorer for term in self.reward if term.at_least is not None]
        if gates and self.combination.rule != "gate":
            raise ValueError(
                f"at_least of {', '.join(gates)}: expected only with rule gate, got {self.combination.rule}"
            )
        if self.combination.rule == "gate" and not 0 < len(gates) < len(self.reward):
            raise ValueError("rule gate: expected at_least on some terms and not on all")
        return self


def stored_task(spec: object) -> Task:
    """Read a task as it was stored or answered; fields of a newer program are ignored, as after a step back from it.

    Raises:
        ValidationError: what this program does know is missing or wrong.
    """
    return Task.model_validate(spec, extra="ignore")


def _each_once(reward: tuple[ScorerTerm, ...]) -> tuple[ScorerTerm, ...]:
    scorers = [term.scorer for term in reward]
    if len(set(scorers)) != len(scorers):
        raise ValueError(f"each scorer expected once in a reward, got {scorers}")
    return reward
