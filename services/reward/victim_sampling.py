"""Answers of a frozen language model, sampled in batches of any company, each the same as it would be alone.

Every answer brings its own uniform numbers, one a token, and each token is read off the inverse of the cumulative
distribution: what is drawn depends on the seed and on nobody beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from services.reward.frozen_model import FrozenModel


@dataclass(frozen=True, slots=True)
class Question:
    """What a victim reads, and how it answers: once, greedily at temperature 0. The seed decides the answer."""

    token_ids: Sequence[int]
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.token_ids) + self.max_new_tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """A text, and how many tokens it took, EOS included."""

    text: str
    tokens: int


class VictimSampler:
    """Samples answers, to call from one thread."""

    def __init__(self, frozen: FrozenModel) -> None:
        self._frozen = frozen
        configured = frozen.model.generation_config.eos_token_id  # None, one, or a list
        stops = {*(configured if isinstance(configured, list) else [configured]), frozen.tokenizer.eos_token_id}
        self._stops = sorted(stops - {None})
        # A folder may bring top_k, repetition penalties and the like; sampling is the task's to define.
        frozen.model.generation_config = GenerationConfig.from_dict({})

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer to each question."""
        width = max(len(question.token_ids) for question in questions)
        padding = [width - len(question.token_ids) for question in questions]  # on the left, where nothing is appended
        pairs = list(zip(padding, questions, strict=True))
        device = self._frozen.device
        limits = torch.tensor([question.max_new_tokens for question in questions], device=device)
        output = self._frozen.model.generate(
            input_ids=torch.tensor([[0] * empty + [*question.token_ids] for empty, question in pairs], device=device),
            attention_mask=torch.tensor([[0] * n + [1] * len(q.token_ids) for n, q in pairs], device=device),
            generation_config=self._configuration(int(limits.max())),
            logits_processor=LogitsProcessorList([_InverseSampler(questions, device)]),
            stopping_criteria=StoppingCriteriaList([_RowLimits(width, limits)]),
        )
        rows = output[:, width:].tolist()  # [questions][steps]
        return [self._answer(row, question) for row, question in zip(rows, questions, strict=True)]

    def _configuration(self, max_new_tokens: int) -> Any:
        return GenerationConfig.from_dict(
            {
                "max_new_tokens": max_new_tokens,
                "do_sample": False,  # the processor below has drawn already
                "eos_token_id": self._stops or None,
                "pad_token_id": (self._stops or [0])[0],
            }
        )

    def _answer(self, token_ids: Sequence[int], question: Question) -> Answer:
        """Cut at the first EOS, or at the question's limit: behind it stands padding."""
        ends = (place for place, token in enumerate(token_ids, start=1) if token in self._stops)
        count = min(next(ends, len(token_ids)), question.max_new_tokens)
        text = self._frozen.tokenizer.decode(
            token_ids[:count], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return Answer(text, count)


class _InverseSampler(LogitsProcessor):
    """Draws the next token of every row and leaves `generate` no choice but to take it."""

    def __init__(self, questions: Sequence[Question], device: torch.device) -> None:
        steps = max(question.max_new_tokens for question in questions)
        uniform = [np.random.Generator(np.random.Philox(question.seed)).random(steps) for question in questions]
        self._uniform = torch.tensor(np.array(uniform), dtype=torch.float32, device=device)  # [rows, steps]
        temperature = torch.tensor([question.temperature for question in questions], device=device)
        self._temperature = torch.where(temperature == 0, 1.0, temperature)[:, None]
        self._top_p = torch.tensor([question.top_p for question in questions], device=device)[:, None]
        self._is_greedy = temperature == 0
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        probabilities, order = (
            (scores.float() / self._temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
        )
        cumulative = probabilities.cumsum(-1)  # [rows, vocabulary]
        nucleus = (cumulative - probabilities < self._top_p).sum(-1, keepdim=True)  # fewest whose mass reaches top_p
        mass = cumulative.gather(-1, nucleus - 1)
        drawn = (cumulative <= self._uniform[:, self._step, None] * mass).sum(-1, keepdim=True)
        rank = torch.minimum(drawn, nucleus - 1).masked_fill(self._is_greedy[:, None], 0)
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(-1, order.gather(-1, rank), 0.0)


class _RowLimits(StoppingCriteria):
    """Ends each row at its own number of new tokens."""

    def __init__(self, width: int, limits: Tensor) -> None:
        self._width = width
        self._limits = limits

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return self._limits <= input_ids.shape[1] - self._width
