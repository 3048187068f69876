"""Summed log-probabilities of given tokens under a causal language model, float32, in batches of similar length.

The same arithmetic as the learner's, so that a reference computed here is the one that it would have computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.reward.frozen_model import FrozenModel, right_padded


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens after a prompt, and the temperature that divides the logits. Both have at least one token."""

    prompt: Sequence[int]
    tokens: Sequence[int]
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.tokens)


class CausalLogprobs:
    """Sums of log-probabilities, to call from one thread."""

    def __init__(self, frozen: FrozenModel) -> None:
        self._frozen = frozen

    def __call__(self, rows: Sequence[Continuation]) -> list[float]:
        """Sum over each row's tokens of log softmax(logits / temperature).

        On CUDA the matrix products run in bfloat16, whatever the weights are, as the learner's do.
        """
        device = self._frozen.device
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return self._sums(rows)

    def _sums(self, rows: Sequence[Continuation]) -> list[float]:
        device = self._frozen.device
        sequences = [[*row.prompt, *row.tokens] for row in rows]
        input_ids, attention_mask = right_padded(sequences, filler=0, device=device)
        starts = torch.tensor([len(row.prompt) for row in rows], device=device)
        ends = torch.tensor([len(row) for row in rows], device=device)
        temperature = torch.tensor([row.temperature for row in rows], device=device)
        first, width = int(starts.min()), input_ids.shape[1]
        positions = torch.arange(first, width, device=device)  # those of some row's tokens
        logits = self._frozen.model(
            input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=positions - 1, use_cache=False
        ).logits  # [rows, positions, vocabulary]
        logits = logits.float() / temperature[:, None, None]
        chosen = logits.gather(-1, input_ids[:, first:, None]).squeeze(-1) - logits.logsumexp(-1)
        inside = (positions >= starts[:, None]) & (positions < ends[:, None])  # [rows, positions]
        return [float(total) for total in chosen.masked_fill(~inside, 0.0).sum(-1)]
