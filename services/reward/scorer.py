"""What a scorer is and what it answers, and the one place where scorers are chosen by kind.

A new kind is two files, `<kind>.py` and `<kind>_settings.py`, and one case here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import pydantic

from tba_common.codec import BadMessage
from tba_common.messages import Float32s, Rollout
from tba_common.tasks import SCORER_KINDS, kind_of

_Options = TypeVar("_Options", bound=pydantic.BaseModel)


class ScoringFailed(Exception):
    """The scorer could not come to a score: too slow, or it broke down over this rollout. Never a zero reward."""


class PassingFault(Exception):
    """No score now, and perhaps one soon: an endpoint answered 503, refused or timed out. The visit is made again."""


class ScorerUnfit(Exception):
    """The scorer can score nothing, and no rollout is to blame: its process ends, and what it had comes again."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a scorer says about the completions of a rollout, in their order.

    `details` are further figures that are reported and never part of a reward; `responses` are what a victim answered
    to each completion, for the scorers after it.
    """

    values: Float32s  # [completions]
    details: Mapping[str, Float32s] = field(default_factory=dict)  # each [completions]
    responses: tuple[tuple[str, ...], ...] = ()  # [completions][samples]


class Scorer(Protocol):
    """Gives each completion of a rollout a number. Called from several threads at once."""

    @property
    def name(self) -> str:
        """The name it was opened by: a kind in `tba_common.tasks.SCORER_KINDS`, or `kind.instance`."""

    @property
    def version(self) -> str:
        """Changes whenever the same completion may get another score."""

    def score(self, rollout: Rollout, options: Mapping[str, Any]) -> Judgement:
        """Judge each completion; `options` are those of the rollout's term (`tba_common.scorer_options`).

        Raises:
            BadMessage: options or prompt are not what this scorer needs; says expected and got.
            ScoringFailed: no fault of the message's form, but there is no score, and asking again would not help.
            PassingFault: no score now; asking again may help.
            ScorerUnfit: nothing can be scored here.
        """


def options_as(model: type[_Options], options: Mapping[str, Any]) -> _Options:
    """Read a term's options as those of a kind, a model of `tba_common.scorer_options`.

    Raises:
        BadMessage: an option is unknown or wrong.
    """
    try:
        return model.model_validate(options)
    except pydantic.ValidationError as error:
        faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors()]
        raise BadMessage("options: " + "; ".join(f"{place or 'all'}: {what}" for place, what in faults)) from error


@contextmanager
def open_scorer(name: str) -> Iterator[Scorer]:
    """A scorer ready to score, everything warm; its settings come from the environment. What it holds ends here.

    Raises:
        ValueError: no such kind.
        SystemExit: its settings are wrong.
    """
    with ExitStack() as stack:
        yield _enter(stack, name)


def _enter(stack: ExitStack, name: str) -> Scorer:
    # Each case imports what no other kind needs: a verifier must not carry torch.
    match kind_of(name):
        case "verifier":
            from services.reward.verifier import open_verifier
            from services.reward.verifier_settings import VerifierSettings

            return stack.enter_context(open_verifier(name, VerifierSettings.from_environment()))
        case "code":
            from services.reward.code import open_code
            from services.reward.code_settings import CodeSettings

            return stack.enter_context(open_code(name, CodeSettings.from_environment()))
        case "reward_model":
            from services.reward.reward_model import open_reward_model
            from services.reward.reward_model_settings import RewardModelSettings

            return stack.enter_context(open_reward_model(name, RewardModelSettings.from_environment()))
        case "toxicity":
            from services.reward.toxicity import open_toxicity
            from services.reward.toxicity_settings import ToxicitySettings

            return stack.enter_context(open_toxicity(name, ToxicitySettings.from_environment()))
        case "victim":
            from services.reward.victim import open_victim
            from services.reward.victim_settings import VictimSettings

            return stack.enter_context(open_victim(name, VictimSettings.from_environment()))
        case "judge":
            from services.reward.judge import open_judge
            from services.reward.judge_settings import JudgeSettings

            return stack.enter_context(open_judge(name, JudgeSettings.from_environment()))
        case "reference":
            from services.reward.reference import open_reference
            from services.reward.reference_settings import ReferenceSettings

            return stack.enter_context(open_reference(name, ReferenceSettings.from_environment()))
        case "diversity":
            from services.reward.diversity import open_diversity
            from services.reward.diversity_settings import DiversitySettings

            return stack.enter_context(open_diversity(name, DiversitySettings.from_environment()))
        case kind:
            raise ValueError(f"scorer {name!r}: expected a kind among {', '.join(SCORER_KINDS)}, got {kind!r}")
