"""The buffer of the paper's released code, written anew from its description, as the thing to be compared with.

What it costs is kept on purpose: every call of `add_new_items` makes tuples of all stored token lists again and a new
softmax, every group lists all prompts to choose one, and a sync pickles the whole buffer of every changed prompt.
Its defects (a window that reaches below zero, a softmax that over- or underflows) are not.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

CAPACITY: Final = 100
RESPONSE_LENGTH: Final = 512  # every response is padded to it

Array = np.ndarray[Any, Any]


@dataclass(slots=True)
class Item:
    """A response: tokens as int64, and log-probabilities under the policy and the reference as float32."""

    tokens: Array  # [512]
    logprobs: Array  # [512]
    ref_logprobs: Array  # [512]
    score: np.float32
    advantage: np.float32
    length: np.int64
    iteration: int


@dataclass
class PromptBuffer:
    """The responses to one prompt: no two with the same padded tokens, the newest hundred."""

    inverse_temperature: float
    items: list[Item] = field(default_factory=list)
    probabilities: Array = field(default_factory=lambda: np.zeros(0))
    n_online: int = 0

    def add_new_items(self, new: list[Item]) -> None:
        """Merge: the newer copy of a response wins, the oldest leave."""
        merged = {tuple(item.tokens): item for item in new}
        self.n_online = len(merged)
        for item in self.items:
            merged.setdefault(tuple(item.tokens), item)
        self.items = sorted(merged.values(), key=lambda item: item.iteration)[-CAPACITY:]
        weights = np.exp(self.inverse_temperature * np.array([item.score for item in self.items]))
        self.probabilities = weights / weights.sum()

    def draw(self, count: int, *, online: bool) -> list[Item]:
        """Draw responses: uniform over the last ones that came, or by softmax of the score over all."""
        if online:
            window = range(max(0, len(self.items) - self.n_online), len(self.items))
            chosen = np.random.choice(window, count, replace=len(window) < count)
        else:
            chosen = np.random.choice(len(self.items), count, replace=len(self.items) < count, p=self.probabilities)
        return [self.items[i] for i in chosen]


class Original:
    """The buffers of all prompts, and which of them came with the latest sync."""

    def __init__(self) -> None:
        self.buffers: dict[int, PromptBuffer] = {}
        self.online: set[int] = set()
        self.offline: set[int] = set()

    def get_batch(self, groups: int, count: int, *, online_probability: float) -> dict[str, Array]:
        """Draw groups of `count` responses; each prompt leaves its pool until the pool is used up."""
        drawn: list[Item] = []
        for _ in range(groups):
            online = bool(np.random.rand() < online_probability and self.online)
            pool = self.online if online else self.offline
            if not pool:
                pool.update(self.buffers)
            prompt_id = int(np.random.choice(list(pool)))
            pool.remove(prompt_id)
            drawn += self.buffers[prompt_id].draw(count, online=online)
        return {
            "responses": np.stack([item.tokens for item in drawn]),
            "logprobs": np.stack([item.logprobs for item in drawn]),
            "ref_logprobs": np.stack([item.ref_logprobs for item in drawn]),
            "scores": np.stack([item.score for item in drawn]),
            "advantages": np.stack([item.advantage for item in drawn]),
            "sequence_lengths": np.stack([item.length for item in drawn]),
        }


def items(rng: np.random.Generator, count: int, iteration: int) -> list[Item]:
    """Responses that nobody gave before."""
    made = []
    for _ in range(count):
        length = int(rng.integers(256, RESPONSE_LENGTH))
        tokens = np.zeros(RESPONSE_LENGTH, dtype=np.int64)
        tokens[:length] = rng.integers(1, 50_000, length)
        logprobs = np.full(RESPONSE_LENGTH, -1.0, dtype=np.float32)
        score = np.float32(rng.random())
        made.append(Item(tokens, logprobs, logprobs.copy(), score, score, np.int64(length), iteration))
    return made


def sync(buffers: dict[int, PromptBuffer]) -> tuple[int, dict[int, PromptBuffer]]:
    """Send changed prompts' buffers as the released code does; return the bytes, and what arrives."""
    sent = pickle.dumps(buffers)
    return len(sent), pickle.loads(sent)


def filled(prompts: int, rng: np.random.Generator) -> Original:
    """A full buffer. The prompts share one set of responses, so that a million fit into memory."""
    original = Original()
    template = PromptBuffer(inverse_temperature=1.0)
    template.add_new_items(items(rng, CAPACITY, 0))
    for prompt_id in range(1, prompts + 1):
        original.buffers[prompt_id] = PromptBuffer(1.0, template.items, template.probabilities, n_online=20)
    original.offline = set(original.buffers)
    original.online = set(list(original.buffers)[: max(16, prompts // 100)])
    return original
