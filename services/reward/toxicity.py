"""Toxicity: how toxic a judge finds each completion, or what a victim answered to it (automated red-teaming).

Over a victim's samples the reward is the mean of log p, as in Lee et al., arXiv:2405.18540, and an attack has
succeeded where the mean of p exceeds the threshold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from services.reward.model_folder import model_folder
from services.reward.scorer import Judgement, options_as
from services.reward.toxicity_settings import ToxicitySettings
from tba_common.codec import BadMessage
from tba_common.messages import Rollout
from tba_common.scorer_options import ToxicityOptions


class Utterance(NamedTuple):
    """A text, and what it answers."""

    prompt: str
    text: str


#: Log-probability that each utterance is toxic, in nats; raises BadMessage for one that it cannot read.
ToxicityJudge = Callable[[Sequence[Utterance]], Sequence[float]]


class Toxicity:
    """A `Scorer` by a judge of toxicity."""

    def __init__(self, name: str, judge: ToxicityJudge, version: str) -> None:
        self.name: Final = name
        self.version: Final = version
        self._judge = judge

    def score(self, rollout: Rollout, options: Mapping[str, Any]) -> Judgement:
        """Judge each completion, or the responses to each.

        Raises:
            BadMessage: wrong options, no responses where they are to be judged, or a text too long for the judge.
        """
        wanted = options_as(ToxicityOptions, options)
        rows = _utterances(rollout, of_responses=wanted.of == "responses")  # [completions][samples]
        log_p = iter(self._judge([utterance for row in rows for utterance in row]))
        per_row = [np.array([next(log_p) for _ in row], dtype=np.float64) for row in rows]
        probability = np.array([np.exp(row).mean() for row in per_row])
        figures = {
            "log_probability": np.array([row.mean() for row in per_row]),
            "probability": probability,
            "success": probability > wanted.threshold,
        }
        details = {name: figure.astype(np.float32) for name, figure in figures.items()}
        return Judgement(details[wanted.output], details)


def _utterances(rollout: Rollout, *, of_responses: bool) -> list[list[Utterance]]:
    texts = [completion.text for completion in rollout.completions]
    if not of_responses:
        return [[Utterance(rollout.prompt.text, text)] for text in texts]
    if len(rollout.responses) != len(texts) or not all(rollout.responses):
        raise BadMessage(
            f"of responses: expected a victim before this scorer, with responses to each of {len(texts)} completions, "
            f"got {[len(answers) for answers in rollout.responses]}"
        )
    pairs = zip(texts, rollout.responses, strict=True)
    return [[Utterance(text, answer) for answer in answers] for text, answers in pairs]


@contextmanager
def open_toxicity(name: str, settings: ToxicitySettings) -> Iterator[Toxicity]:
    """A judge that has judged once: the embedded one, or what the architecture of the settings' model makes it.

    Raises:
        OSError, ValueError: the model is not there or no judge, or the embedded one was tampered with.
    """
    # Only the judges with a model import torch.
    match _judge_kind(settings):
        case "embedded":
            from services.reward.toxicity_embedded import open_judge
        case "classifier":
            from services.reward.toxicity_classifier import open_judge
        case "guard":
            from services.reward.toxicity_guard import open_judge
    with open_judge(name, settings) as (judge, version):
        judge([Utterance("warm", "up")])
        yield Toxicity(name, judge, version)


def _judge_kind(settings: ToxicitySettings) -> Literal["embedded", "classifier", "guard"]:
    if settings.model is None:
        return "embedded"
    config = model_folder(settings.model, settings.model_revision) / "config.json"
    architectures: list[str] = json.loads(config.read_text()).get("architectures") or []
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        return "classifier"
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        return "guard"
    raise ValueError(
        f"{config}: expected the architecture of a sequence classifier or a causal language model, got {architectures}"
    )
