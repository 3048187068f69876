"""Log-probabilities of completions that share prompts: each distinct prompt is read once, with its gradient.

Its attention cache is dealt out to its completions. K completions would otherwise compute their prompt K times,
which is most of a step where answers are short: eight of 14 tokens after 50 cost a third of what they did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from services.learner.collate import Rows


def shares_prompts(config: Any, rows: Rows) -> bool:
    """Whether reading prompts apart is possible and saves work.

    The model must attend to all that came before (a recurrent state or a sliding window cannot be dealt out), and
    a prompt must have a token to spare, for its last one is read with the completion.
    """
    if not all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers):
        return False
    prompts = _prompts(rows)
    return len(set(prompts)) < len(prompts) and min(map(len, prompts)) > 1


def shared_prompt_logprob(model: Callable[..., Any], config: Any, rows: Rows) -> Tensor:
    """What `policy.sequence_logprob` computes, [rows] float32, for rows that `shares_prompts` allows."""
    prompts = _prompts(rows)
    distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    of_row = torch.tensor([distinct[prompt] for prompt in prompts], device=rows.input_ids.device)
    read, read_mask = _left_padded([prompt[:-1] for prompt in distinct], rows.input_ids.device)
    cache = DynamicCache(config=config)
    model(
        input_ids=read,
        attention_mask=read_mask,
        position_ids=(read_mask.cumsum(dim=1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_select_indices(of_row)

    length = rows.completion_mask.sum(dim=1)  # [rows]
    step = torch.arange(int(length.max()) + 1, device=length.device)
    position = rows.completion_mask.int().argmax(dim=1)[:, None] - 1 + step  # [rows, longest + 1]
    token_ids = rows.input_ids.gather(1, position.clamp(max=rows.input_ids.shape[1] - 1))
    written = step[:-1] < length[:, None]  # [rows, longest]
    logits: Tensor = model(
        input_ids=token_ids[:, :-1],
        attention_mask=torch.cat([read_mask[of_row], written.long()], dim=1),
        position_ids=position[:, :-1],
        past_key_values=cache,
        use_cache=True,
    ).logits  # [rows, longest, vocabulary]
    logits = logits.float() / rows.temperature[:, None, None]
    chosen = logits.gather(-1, token_ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
    return chosen.masked_fill(~written, 0.0).sum(-1)


def _prompts(rows: Rows) -> list[tuple[int, ...]]:
    """What comes before the completion of each row."""
    lengths = rows.completion_mask.int().argmax(dim=1).tolist()
    return [tuple(ids[:length]) for ids, length in zip(rows.input_ids.tolist(), lengths, strict=True)]


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, [prompts, width]; what stands in the padding is never attended to."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + [*prompt] for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
