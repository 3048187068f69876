"""Models that fit a test: random, a few thousand weights, one token a character."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

Problem = Literal["single_label_classification", "multi_label_classification"]

PAD, EOS = 0, 1
CONTEXT = 64
VOCABULARY = ["<pad>", "<eos>", "<cls>", *"0123456789+=abcdefghijklmnopqrstuvwxyz :"]
TEMPLATE = "{% for message in messages %}{{ message['role'][0] }}:{{ message['content'] }} {% endfor %}"


def tokenizer(*, pad_token: str | None = "<pad>", adds_cls: bool = False, chat_template: str | None = TEMPLATE) -> Any:
    vocabulary = {token: i for i, token in enumerate(VOCABULARY)}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    characters.decoder = decoders.Fuse()
    if adds_cls:
        characters.post_processor = processors.TemplateProcessing(
            single="<cls> $A <eos>", special_tokens=[("<cls>", 2), ("<eos>", EOS)]
        )
    special = {"eos_token": "<eos>"} | ({} if pad_token is None else {"pad_token": pad_token})
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=characters, chat_template=chat_template, clean_up_tokenization_spaces=False, **special)


def _llama(kind: Any, pad_token_id: int | None, **changes: Any) -> Any:
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,  # wide: distributions far from uniform tell bugs apart
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=pad_token_id,
        **changes,
    )
    return kind(config).eval()


def language_model(folder: Path, *, seed: int = 0) -> Any:
    """A Llama in `folder`; also returned."""
    torch.manual_seed(seed)
    return _saved(_llama(LlamaForCausalLM, PAD), tokenizer(), folder)


def reward_model(folder: Path, padding: Literal["own", "eos", "none"] = "own", *, outputs: int = 1) -> Any:
    """A Llama with a scalar head, whose configuration names PAD, EOS or nothing as padding."""
    torch.manual_seed(1)
    pad_token_id = {"own": PAD, "eos": EOS, "none": None}[padding]
    pad_token = {"own": "<pad>", "eos": "<eos>", "none": None}[padding]
    return _saved(
        _llama(LlamaForSequenceClassification, pad_token_id, num_labels=outputs), tokenizer(pad_token=pad_token), folder
    )


def classifier(folder: Path, *, problem: Problem = "single_label_classification") -> Any:
    """A RoBERTa with the labels nothate and hate."""
    torch.manual_seed(2)
    config = RobertaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,
        pad_token_id=PAD,
        id2label={0: "nothate", 1: "hate"},
        problem_type=problem,
    )
    return _saved(_built(RobertaForSequenceClassification, config), tokenizer(adds_cls=True), folder)


def encoder(folder: Path) -> Any:
    """A BERT with the pooling of a sentence encoder beside it."""
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,
        pad_token_id=PAD,
    )
    model = _saved(_built(BertModel, config), tokenizer(adds_cls=True), folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"word_embedding_dimension": 16, "pooling_mode_mean_tokens": true}')
    return model


def _built(kind: Any, config: Any) -> Any:
    return kind(config).eval()


def _saved(model: Any, with_tokenizer: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    with_tokenizer.save_pretrained(folder)
    return model
