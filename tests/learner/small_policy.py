"""A policy that fits a test: a random Llama of a few thousand parameters, one token a character."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from services.learner.policy import Policy, save_model
from services.learner.tiny import tiny_tokenizer
from tests.learner.groups import EOS, PAD


def write_small(directory: Path, *, seed: int = 0, tied: bool = False) -> Path:
    """Save it as a Hugging Face folder; the same seed gives the same weights."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.25,  # wide: distributions far from uniform tell bugs apart
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    torch.manual_seed(seed)
    llama: Any = LlamaForCausalLM
    save_model(llama(config), tokenizer, directory)
    return directory


def load_small(directory: Path) -> Policy:
    """A policy of one's own; the folder is read once, for that takes longer than several steps."""
    loaded = _read(directory)
    return replace(loaded, model=copy.deepcopy(loaded.model), reference=copy.deepcopy(loaded.reference))


@functools.cache
def _read(directory: Path) -> Policy:
    return Policy.load(str(directory), device="cpu")
