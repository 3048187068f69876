"""A reward model from preference pairs: the Bradley-Terry loss of TRL, the Hugging Face format out. The door to TRL.

Pairs are read, tokenized and measured by the code of the scorer, so that accuracy here is accuracy there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from services.reward.frozen_model import load_frozen
from services.reward.micro_batches import MicroBatches
from services.reward.model_text import TextFormat, answer_token_ids
from services.reward.preference_pairs import Pair, read_pairs, split_pairs
from services.reward.reward_model_settings import RewardModelSettings
from services.reward.sequence_classifier import SequenceClassifier


@dataclass(frozen=True)
class Outcome:
    """How well the model tells chosen from rejected, measured on pairs of prompts that it was not trained on."""

    pairs: int
    held_out_pairs: int
    accuracy: float  # share of held-out pairs in the right order
    loss: float  # nats
    seconds: float  # of training


@dataclass(frozen=True)
class Recipe:
    """How to train. `held_out` is the share of prompts that is kept back; no pair may be longer than `max_tokens`."""

    text_format: TextFormat = "text"
    epochs: float = 1.0
    batch: int = 16
    learning_rate: float = 1e-5
    held_out: float = 0.1
    max_tokens: int = 1_024
    seed: int = 0


def train(*, data: Path, model: str, out: Path, recipe: Recipe) -> Outcome:
    """Train a scalar head and all below it on the pairs in `data`; save model, tokenizer and `outcome.json` in `out`.

    `model` is a Hugging Face folder or hub id: a language model gets a fresh head, a reward model keeps its own.

    Raises:
        OSError: no such file or model.
        ValueError: a line is no pair, a pair is longer than `max_tokens`, or there are too few pairs.
    """
    pairs, held_out = split_pairs(read_pairs(data), recipe.held_out, recipe.seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    train_rows, held_out_rows = (_token_ids(part, tokenizer, recipe) for part in (pairs, held_out))
    trainer = _trainer(model, tokenizer, train_rows, out, recipe)
    seconds = float(trainer.train().metrics["train_runtime"])
    trainer.model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    accuracy, loss = measure(out, held_out_rows)
    outcome = Outcome(len(pairs), len(held_out), accuracy, loss, seconds)
    (out / "outcome.json").write_text(json.dumps(asdict(outcome)))
    return outcome


def measure(folder: Path, rows: Sequence[tuple[list[int], list[int]]]) -> tuple[float, float]:
    """Return accuracy and Bradley-Terry loss of a saved reward model on (chosen, rejected) token ids."""
    settings = RewardModelSettings(model=str(folder))
    frozen = load_frozen(AutoModelForSequenceClassification, settings)
    with MicroBatches(SequenceClassifier(frozen), "training", settings, length=len) as batches:
        scores = np.array([logits[0] for logits in batches([ids for row in rows for ids in row])], dtype=np.float64)
    margins = scores[::2] - scores[1::2]
    return float((margins > 0).mean()), float(np.logaddexp(0, -margins).mean())


def _trainer(model: str, tokenizer: Any, rows: Sequence[tuple[list[int], list[int]]], out: Path, recipe: Recipe) -> Any:
    config = RewardConfig(
        output_dir=str(out),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch,
        learning_rate=recipe.learning_rate,
        seed=recipe.seed,
        max_length=None,  # TRL would drop what is longer without a word; it is refused above
        model_init_kwargs={"dtype": "float32", "use_safetensors": True},
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,  # torch warns about it where there is no GPU
    )
    chosen, rejected = zip(*rows, strict=True)
    dataset = Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected})
    return RewardTrainer(model=model, args=config, processing_class=tokenizer, train_dataset=dataset)


def _token_ids(pairs: Sequence[Pair], tokenizer: Any, recipe: Recipe) -> list[tuple[list[int], list[int]]]:
    rows = []
    for pair in pairs:
        chosen, rejected = (
            answer_token_ids(tokenizer, pair.prompt, answer, text_format=recipe.text_format)
            for answer in (pair.chosen, pair.rejected)
        )
        for field, ids in (("chosen", chosen), ("rejected", rejected)):
            if len(ids) > recipe.max_tokens:
                raise ValueError(
                    f"{pair.where}: {field}: expected at most {recipe.max_tokens} tokens with prompt, got {len(ids)}"
                )
        rows.append((chosen, rejected))
    return rows
