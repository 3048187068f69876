"""Texts -> sentence embeddings of length 1: a Hugging Face encoder and the pooling that its folder prescribes.

The folder is one of sentence-transformers'. That library itself would do, but takes as long to import as all else
that this process does before it is ready, and would not share batches across rollouts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from services.reward.frozen_model import FrozenModel, right_padded

TokenIds = Sequence[int]
Embedding = npt.NDArray[np.float32]  # [width]


class SentenceEncoder:
    """An encoder to call from one thread."""

    def __init__(self, frozen: FrozenModel, folder: Path) -> None:
        self._frozen = frozen
        self._pools_first = _pools_first_token(folder)

    def __call__(self, rows: Sequence[TokenIds]) -> list[Embedding]:
        """The embedding of each row of token ids, float32, of length 1."""
        with torch.inference_mode():
            input_ids, attention_mask = right_padded(rows, filler=0, device=self._frozen.device)
            states = self._frozen.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
            inside = attention_mask[:, :, None]  # [rows, width, 1]
            pooled = states[:, 0] if self._pools_first else (states * inside).sum(1) / inside.sum(1)
            return list(functional.normalize(pooled, dim=-1).cpu().numpy())


def _pools_first_token(folder: Path) -> bool:
    """Whether an embedding is the first token's state instead of the mean over tokens.

    Raises:
        OSError: the folder does not say how to pool.
        ValueError: it asks for another way.
    """
    path = folder / "1_Pooling/config.json"
    modes = [name for name, is_on in json.loads(path.read_text()).items() if is_on is True and "pooling_mode" in name]
    if modes not in (["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
        raise ValueError(f"{path}: expected pooling_mode_mean_tokens or pooling_mode_cls_token alone, got {modes}")
    return modes == ["pooling_mode_cls_token"]
