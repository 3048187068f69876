"""A supervised start: cross-entropy on the completion tokens and EOS of `text` -> `reference` pairs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from services.learner.collate import Rows, pad_rows
from services.learner.policy import load_model, save_model, sequence_logprob
from services.learner.schedule import LearningRateSchedule

Pair = tuple[list[int], list[int]]  # prompt ids, completion ids that end in EOS


def train(
    *,
    model: Path,
    data: Path,
    out: Path,
    steps: int,
    batch: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> float:
    """Train the policy in `model` on the JSONL file `data` and save it to `out`; returns the last loss in nats.

    The rate warms up over a tenth of the steps and decays over the last half. Each epoch is a new permutation.

    Raises:
        ValueError: a line without text and reference.
    """
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = load_model(model, device)
    batches = _batches(_read(data, tokenizer), batch, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = LearningRateSchedule(warmup=steps // 10, stable=steps - steps // 10 - steps // 2, decay=steps // 2)
    started, loss = time.monotonic(), torch.tensor(torch.nan)
    for step in range(1, steps + 1):
        for settings in optimizer.param_groups:
            settings["lr"] = learning_rate * schedule.multiplier(step)
        loss = _step(policy, optimizer, next(batches), pad_token_id=tokenizer.pad_token_id, device=device)
        if step % max(1, steps // 10) == 0:
            report(f"supervised step {step}/{steps}  loss {loss:.4f}  {time.monotonic() - started:.1f} s")
    save_model(policy, tokenizer, out)
    return float(loss)


def _step(
    policy: Any,
    optimizer: torch.optim.Optimizer,
    pairs: Sequence[Pair],
    *,
    pad_token_id: int,
    device: torch.device,
) -> torch.Tensor:
    rows = pad_rows(pairs, temperature=[1.0] * len(pairs), pad_token_id=pad_token_id, device=device)
    loss = mean_cross_entropy(policy, rows)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def mean_cross_entropy(policy: Any, rows: Rows) -> torch.Tensor:
    """Negative log-likelihood per completion token, in nats."""
    return -sequence_logprob(policy, rows).sum() / rows.completion_mask.sum()


def _read(path: Path, tokenizer: Any) -> list[Pair]:
    pairs = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        record = json.loads(line)
        if not isinstance(record.get("text"), str) or not isinstance(record.get("reference"), str):
            raise ValueError(f"{path}:{number}: expected an object with strings 'text' and 'reference'")
        completion = tokenizer(record["reference"], add_special_tokens=False)["input_ids"]
        pairs.append((tokenizer(record["text"])["input_ids"], [*completion, tokenizer.eos_token_id]))
    return pairs


def _batches(pairs: Sequence[Pair], size: int, rng: torch.Generator) -> Iterator[list[Pair]]:
    order: list[int] = []
    while True:
        while len(order) < size:
            order += torch.randperm(len(pairs), generator=rng).tolist()
        yield [pairs[i] for i in order[:size]]
        order = order[size:]
