"""A policy from scratch that learns while one watches: 0.9 million parameters, one token a character or word.

Random weights; `supervised` gives it a start. It fits a demo and a test, and goes through every door a real
model goes through.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from services.learner.policy import save_model
from services.learner.tiny_tokens import EOS, PAD, UNKNOWN, tiny_tokens

# Their constructors carry no types.
_Llama: Final[Any] = LlamaForCausalLM
_Tokenizer: Final[Any] = PreTrainedTokenizerFast


def tiny_tokenizer(text: str = "") -> Any:
    """The tokens of `tiny_tokens` as transformers uses them."""
    return _Tokenizer(
        tokenizer_object=tiny_tokens(text),
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(tokenizer: Any, *, seed: int = 0) -> Any:
    """Four layers of width 128 with random weights, the same for the same seed."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=128**-0.5,  # the usual 0.02 suits wide models; here it triples the time to learn
        tie_word_embeddings=False,  # some engines keep a stale tied head after a reload
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return _Llama(config).eval()


def write_tiny(directory: Path, *, words_of: str = "", seed: int = 0) -> int:
    """Save an untrained tiny policy as a Hugging Face folder; returns its number of parameters."""
    tokenizer = tiny_tokenizer(words_of)
    model = tiny_model(tokenizer, seed=seed)
    save_model(model, tokenizer, directory)
    return sum(parameter.numel() for parameter in model.parameters())
