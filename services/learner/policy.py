"""The door to the model: the policy that is trained, the frozen reference, and their log-probabilities.

Weights are float32; on CUDA the matrix products run in bfloat16. Both models run under the same arithmetic, so
before the first step the log ratio of the two is exactly zero. Only safetensors are read, and no remote code.
The reference is a second model, or where an adapter is trained, the same one with its adapter off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from services.learner.adapter import Adapter
from services.learner.collate import Rows, pad_rows
from services.learner.shared_prompts import shared_prompt_logprob, shares_prompts
from tba_common.base_model import is_adapter
from tba_common.weights import Canary

# This is the door to transformers, and its bars are not for a service's log.
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

#: Short texts whose log-probabilities tell a generator whether it really runs the weights it loaded.
CANARY_TEXTS: Final = ("12+34=46", "The capital of France is Paris.", "def add(a, b): return a + b")


@dataclass(frozen=True)
class Policy:
    """A causal language model in training, its tokenizer and its frozen reference."""

    model: Any  # transformers.PreTrainedModel
    reference: Any  # called like the model; None where a scorer computes its log-probabilities
    tokenizer: Any
    device: torch.device
    adapter: Adapter | None = None  # None where all weights are trained

    @classmethod
    def load(cls, model: str, *, device: str = "auto", lora_rank: int = 0, with_reference: bool = True) -> Policy:
        """Load a Hugging Face folder or hub id as the policy and, unless told otherwise, as its reference.

        A rank above 0 lays an adapter over it and trains that; 0 trains every weight.

        Raises:
            OSError: no such model, or it has no safetensors file.
            ValueError: the folder holds an adapter.
        """
        where = choose_device(device)
        tokenizer = AutoTokenizer.from_pretrained(model)
        if lora_rank:
            adapter = Adapter.over(load_model(model, where), model, rank=lora_rank)
            reference = adapter.reference if with_reference else None
            return cls(adapter.model, reference, tokenizer, where, adapter)
        reference = load_model(model, where).requires_grad_(False) if with_reference else None
        return cls(load_model(model, where), reference, tokenizer, where)

    @property
    def trained(self) -> dict[str, Tensor]:
        """What the optimiser moves, by name: every weight, or those of the adapter."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    @property
    def pad_token_id(self) -> int:
        """The id that fills rows up; any will do, since padding is masked by position."""
        return int(self.tokenizer.pad_token_id or 0)

    def logprob(self, rows: Rows) -> Tensor:
        """Sum of log pi over each row's completion tokens, [rows] float32, with gradient."""
        with self._autocast():
            return self._logprob(self.model, rows)

    def ref_logprob(self, rows: Rows) -> Tensor:
        """The same sum under the frozen reference, [rows] float32."""
        with torch.no_grad(), self._autocast():
            return self._logprob(self.reference, rows)

    def reset_reference(self) -> None:
        """Make the reference what the policy is now (arXiv:2503.18929, section 6); both are whole models."""
        self.reference.load_state_dict(self.model.state_dict())

    def canary(self) -> Canary:
        """What these weights say about the canary texts, in float32 at temperature 1."""
        encoded = [self.tokenizer(text)["input_ids"] for text in CANARY_TEXTS]
        cuts = [len(ids) // 2 for ids in encoded]
        rows = pad_rows(
            [(ids[:cut], ids[cut:]) for ids, cut in zip(encoded, cuts, strict=True)],
            temperature=[1.0] * len(encoded),
            pad_token_id=self.pad_token_id,
            device=self.device,
        )
        with torch.no_grad():
            logprobs = sequence_logprob(self.model, rows)
        return Canary(
            token_ids=tuple(tuple(ids) for ids in encoded),
            prompt_lengths=tuple(cuts),
            logprobs=tuple(logprobs.tolist()),
        )

    def save(self, directory: Path) -> None:
        """Write a complete Hugging Face folder, or the adapter's: configuration, tokenizer, safetensors."""
        if self.adapter is None:
            save_model(self.model, self.tokenizer, directory)
        else:
            self.adapter.save(directory)
            self.tokenizer.save_pretrained(directory)

    def _logprob(self, model: Any, rows: Rows) -> Tensor:
        if shares_prompts(self.model.config, rows):
            return shared_prompt_logprob(model, self.model.config, rows)
        return sequence_logprob(model, rows)

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            yield


def sequence_logprob(model: Any, rows: Rows) -> Tensor:
    """Sum over the completion tokens of log softmax(logits / temperature), [rows] float32.

    The vocabulary is only computed for positions that predict a completion token of some row, which is where
    the memory goes: 1.3 GB a copy at 20 x 512 x 32,000 in float32.
    """
    first = int(rows.completion_mask.any(dim=0).int().argmax())
    length = rows.input_ids.shape[1]
    logits: Tensor = model(
        input_ids=rows.input_ids,
        attention_mask=rows.attention_mask,
        logits_to_keep=torch.arange(first - 1, length - 1, device=rows.input_ids.device),
        use_cache=False,
    ).logits  # [rows, length - first, vocabulary]
    logits = logits.float() / rows.temperature[:, None, None]
    chosen = logits.gather(-1, rows.input_ids[:, first:, None]).squeeze(-1) - logits.logsumexp(-1)
    return chosen.masked_fill(~rows.completion_mask[:, first:], 0.0).sum(-1)


def choose_device(name: str) -> torch.device:
    """The device of this name; `auto` is CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def load_model(model: str | Path, device: torch.device) -> Any:
    """A float32 causal language model without dropout: a log-probability must be a function of the weights.

    Raises:
        ValueError: the folder holds an adapter, which transformers would lay over its base and train both.
    """
    if is_adapter(Path(model)):
        raise ValueError(f"{model} holds an adapter, expected a whole model: merge it into its base first")
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    return loaded.to(device).eval()


def save_model(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write model and tokenizer as a Hugging Face folder that every engine can load."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
