"""A judge of toxicity: the probability of one label of a Hugging Face sequence classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from services.reward.frozen_model import FrozenModel, load_frozen
from services.reward.micro_batches import MicroBatches
from services.reward.sequence_classifier import Logits, SequenceClassifier, TokenIds
from services.reward.toxicity import ToxicityJudge, Utterance
from services.reward.toxicity_settings import ToxicitySettings


class LabelJudge:
    """Judges the text of an utterance by one label, among those that exclude one another or by itself."""

    def __init__(self, frozen: FrozenModel, batches: MicroBatches[TokenIds, Logits], label: int) -> None:
        self._frozen = frozen
        self._batches = batches
        self._label = label
        config = frozen.model.config
        self._excludes = config.problem_type != "multi_label_classification" and config.num_labels > 1

    def __call__(self, utterances: Sequence[Utterance]) -> list[float]:
        rows = [self._frozen.tokenizer(utterance.text)["input_ids"] for utterance in utterances]
        for place, row in enumerate(rows, start=1):
            self._frozen.check_length(len(row), f"text {place} of {len(rows)}")
        return [self._log_probability(logits) for logits in self._batches(rows)]

    def _log_probability(self, logits: Logits) -> float:
        values = torch.from_numpy(logits)
        logs = values.log_softmax(-1) if self._excludes else functional.logsigmoid(values)
        return float(logs[self._label])


@contextmanager
def open_judge(name: str, settings: ToxicitySettings) -> Iterator[tuple[ToxicityJudge, str]]:
    """The classifier of the settings, and its version.

    Raises:
        OSError, ValueError: no such model, or no such label.
    """
    frozen = load_frozen(AutoModelForSequenceClassification, settings)
    labels = {text: index for index, text in frozen.model.config.id2label.items()}
    if settings.toxic_label not in labels:
        raise ValueError(f"toxic_label: expected one of {', '.join(labels)}, got {settings.toxic_label}")
    with MicroBatches(SequenceClassifier(frozen), name, settings, length=len) as batches:
        yield LabelJudge(frozen, batches, labels[settings.toxic_label]), f"{frozen.version}/{settings.toxic_label}"
