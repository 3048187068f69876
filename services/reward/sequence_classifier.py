"""Token ids -> logits of a sequence classifier, in batches: each row gets what it would get alone.

A decoder's head reads the last token that is not padding. Where the model names a padding token, rows are filled with
that one and no other. Where it names none, EOS must not stand in for it, or the head would skip every row's real EOS.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from services.reward.frozen_model import FrozenModel, right_padded

TokenIds = Sequence[int]
Logits = npt.NDArray[np.float32]  # [labels]


class SequenceClassifier:
    """A classifier to call from one thread."""

    def __init__(self, frozen: FrozenModel) -> None:
        self._frozen = frozen
        self._config = frozen.model.config.get_text_config()
        padding = self._config.pad_token_id
        self._own_padding = padding if padding in range(self._config.vocab_size) else None

    def __call__(self, rows: Sequence[TokenIds]) -> list[Logits]:
        """The logits of each row, float32."""
        if self._own_padding is not None:
            return self._logits(rows, self._own_padding)
        used = {token for row in rows for token in row}
        filler = next((token for token in range(self._config.vocab_size) if token not in used), None)
        if filler is None:  # a vocabulary this small makes for short rows
            self._config.pad_token_id = None
            return [logits for row in rows for logits in self._logits([row], 0)]
        self._config.pad_token_id = filler  # where the head looks it up
        return self._logits(rows, filler)

    @torch.inference_mode()
    def _logits(self, rows: Sequence[TokenIds], filler: int) -> list[Logits]:
        input_ids, attention_mask = right_padded(rows, filler=filler, device=self._frozen.device)
        logits = self._frozen.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return list(logits.float().cpu().numpy())
