"""The reward model: a scalar head over prompt and completion, by any Hugging Face sequence classifier with one output.

A text that is longer than the model can read has no score: it is refused, never cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from transformers import AutoModelForSequenceClassification

from services.reward.frozen_model import FrozenModel, load_frozen
from services.reward.micro_batches import MicroBatches
from services.reward.model_text import answer_token_ids
from services.reward.reward_model_settings import RewardModelSettings
from services.reward.scorer import Judgement, options_as
from services.reward.sequence_classifier import Logits, SequenceClassifier, TokenIds
from tba_common.codec import BadMessage
from tba_common.messages import Prompt, Rollout
from tba_common.scorer_options import RewardModelOptions


class RewardModel:
    """A `Scorer` by a scalar head. Rollouts that are scored at once share batches."""

    def __init__(
        self,
        name: str,
        frozen: FrozenModel,
        batches: MicroBatches[TokenIds, Logits],
        settings: RewardModelSettings,
    ) -> None:
        self.name: Final = name
        self._frozen = frozen
        self._batches = batches
        self._settings = settings
        self.version: Final = f"{frozen.version}/{settings.text_format}{'+eos' if settings.ends_with_eos else ''}"

    def score(self, rollout: Rollout, options: Mapping[str, Any]) -> Judgement:
        """Judge each completion by its score, or by how it compares with the prompt's reference answer.

        Raises:
            BadMessage: wrong options, no reference to compare with, or a text longer than the model can read.
        """
        wanted = options_as(RewardModelOptions, options)
        reference = rollout.prompt.reference
        if reference is None and wanted.output != "score":
            raise BadMessage(f"output {wanted.output}: expected a prompt with a reference, got none")
        texts = [completion.text for completion in rollout.completions]
        raw = self._scores(rollout.prompt, texts if reference is None else [*texts, reference])
        scores = (raw - wanted.mean) / wanted.deviation
        figures = {"score": scores[: len(texts)]}
        details = {"score": raw[: len(texts)].astype(np.float32)}
        if reference is not None:
            margin = figures["score"] - scores[-1]
            figures |= {"margin": margin, "win": (np.sign(margin) + 1) / 2}
            details |= {name: figures[name].astype(np.float32) for name in ("margin", "win")}
        return Judgement(figures[wanted.output].astype(np.float32), details)

    def warm_up(self) -> None:
        """Score something, so that the first rollout does not wait and a model that cannot is no service."""
        self._batches([self._frozen.tokenizer("warm")["input_ids"] or [0]])

    def _scores(self, prompt: Prompt, texts: list[str]) -> npt.NDArray[np.float64]:
        rows = [self._token_ids(prompt, text) for text in texts]
        for place, row in enumerate(rows, start=1):
            self._frozen.check_length(len(row), f"prompt with answer {place} of {len(rows)}")
        return np.array([logits[0] for logits in self._batches(rows)], dtype=np.float64)  # [texts]

    def _token_ids(self, prompt: Prompt, text: str) -> list[int]:
        return answer_token_ids(
            self._frozen.tokenizer,
            prompt.text,
            text,
            text_format=self._settings.text_format,
            system=prompt.system,
            ends_with_eos=self._settings.ends_with_eos,
        )


@contextmanager
def open_reward_model(name: str, settings: RewardModelSettings) -> Iterator[RewardModel]:
    """A reward model that has scored once.

    Raises:
        OSError, ValueError: no such model, or one without a trained scalar head.
    """
    frozen = load_frozen(AutoModelForSequenceClassification, settings)
    if frozen.model.config.num_labels != 1:
        raise ValueError(f"{settings.model}: expected a head with one output, got {frozen.model.config.num_labels}")
    if settings.text_format == "chat":
        frozen.check_chat_template()
    with MicroBatches(SequenceClassifier(frozen), name, settings, length=len) as batches:
        scorer = RewardModel(name, frozen, batches, settings)
        scorer.warm_up()
        yield scorer
