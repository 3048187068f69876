"""A supervised start: cross-entropy on the completion tokens and EOS of `text` -> `reference` pairs.

It can stop at an accuracy, since learning comes in jumps and the step of a jump differs between machines.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoTokenizer

from services.learner.collate import Rows, pad_rows
from services.learner.policy import choose_device, load_model, save_model, sequence_logprob

Pair = tuple[list[int], list[int]]  # prompt ids, completion ids that end in EOS

WARMUP_STEPS: Final = 20
CHECK_EVERY: Final = 10
#: Pairs at the end of the file that are only used to measure accuracy.
HELD_OUT: Final = 256


@dataclass(frozen=True)
class Outcome:
    """Where the training ended. `accuracy` is greedy exact match, EOS included, on the held-out pairs."""

    steps: int
    loss: float  # nats per token, of the last step
    accuracy: float
    seconds: float


def train(
    *,
    model: str | Path,
    data: Path,
    out: Path,
    steps: int,
    batch: int,
    until_accuracy: float = 1.0,
    learning_rate: float = 1e-3,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> Outcome:
    """Train the policy in `model` on the JSONL file `data`, save it to `out`.

    Ends after `steps` steps of `batch` pairs, or once accuracy reaches `until_accuracy`. Same seed, same weights.

    Raises:
        ValueError: a line without text and reference, or too few of them; no step, or no pair in one.
    """
    if steps < 1 or batch < 1:
        raise ValueError(f"expected one step and one pair a step, or more, got {steps} and {batch}")
    torch.manual_seed(seed)
    device = choose_device("auto")
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = load_model(model, device)
    pairs = _read(data, tokenizer)
    held_out = _rows(pairs[-HELD_OUT:], tokenizer, device)
    batches = _batches(pairs[:-HELD_OUT], batch, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    started = time.monotonic()
    for step in range(1, steps + 1):
        for settings in optimizer.param_groups:
            settings["lr"] = learning_rate * min(1.0, step / WARMUP_STEPS)
        loss = _step(policy, optimizer, _rows(next(batches), tokenizer, device))
        if step % CHECK_EVERY == 0 or step == steps:
            outcome = Outcome(step, loss, greedy_accuracy(policy, held_out), time.monotonic() - started)
            report(
                f"supervised step {step}/{steps}  loss {loss:.3f}  accuracy {outcome.accuracy:.3f}"
                f"  {outcome.seconds:.0f} s"
            )
            if outcome.accuracy >= until_accuracy:
                break
    save_model(policy, tokenizer, out)
    return outcome


@torch.no_grad()
def greedy_accuracy(policy: Any, rows: Rows) -> float:
    """Share of rows that greedy decoding would reproduce: every token is the argmax after the ones before it."""
    logits = policy(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False).logits
    right = logits[:, :-1].argmax(-1) == rows.input_ids[:, 1:]  # [rows, length - 1]
    return float((right | ~rows.completion_mask[:, 1:]).all(dim=1).float().mean())


def _step(policy: Any, optimizer: torch.optim.Optimizer, rows: Rows) -> float:
    loss = -sequence_logprob(policy, rows).sum() / rows.completion_mask.sum()
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _rows(pairs: Sequence[Pair], tokenizer: Any, device: torch.device) -> Rows:
    return pad_rows(pairs, temperature=[1.0] * len(pairs), pad_token_id=tokenizer.pad_token_id or 0, device=device)


def _read(path: Path, tokenizer: Any) -> list[Pair]:
    pairs = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        record = json.loads(line)
        fields = record if isinstance(record, dict) else {}
        if not all(isinstance(fields.get(name), str) for name in ("text", "reference")):
            raise ValueError(f"{path}:{number}: expected an object with strings 'text' and 'reference'")
        completion = tokenizer(record["reference"], add_special_tokens=False)["input_ids"]
        pairs.append((tokenizer(record["text"])["input_ids"], [*completion, tokenizer.eos_token_id]))
    if len(pairs) <= HELD_OUT:
        raise ValueError(f"{path}: expected more than {HELD_OUT} pairs, which are held out, got {len(pairs)}")
    return pairs


def _batches(pairs: Sequence[Pair], size: int, rng: torch.Generator) -> Iterator[list[Pair]]:
    """Batches without end, each epoch a new permutation."""
    order: list[int] = []
    while True:
        while len(order) < size:
            order += torch.randperm(len(pairs), generator=rng).tolist()
        yield [pairs[i] for i in order[:size]]
        order = order[size:]
