"""Adapters that fit a test: random LoRA over the tiny policy, published through the real weight store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from tba_common.base_model import BaseModel, weights_digest
from tba_common.messages import Weights
from tba_common.weights import Canary, Snapshot, WeightStore
from tests.generator.tiny_policy import CUTS, SEQUENCES, Policy, logprob_of


@dataclass(frozen=True)
class AdapterPublisher:
    """Publishes adapters over one base, which lies in a folder of its own; the same seed gives the same adapter."""

    root: Path
    policy: Policy = field(default_factory=Policy)

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def store(self) -> WeightStore:
        return WeightStore(self.root / "weights")

    def write_base(self) -> None:
        self.policy.model().save_pretrained(self.base)

    def model(self, seed: int, rank: int = 4) -> Any:
        """The base with an adapter of random numbers, in both factors, over it."""
        base = self.policy.model()
        base.name_or_path = str(self.base)
        adapted: Any = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in (weight for weight in adapted.parameters() if weight.requires_grad):
                weight.copy_(torch.randn_like(weight) * 0.3)
        return adapted.eval()

    def publish(self, version: int, *, rank: int = 4, change: Callable[[Path], None] = lambda folder: None) -> Weights:
        """Publish the adapter whose seed is the version; `change` alters the folder before its manifest is written."""
        model = self.model(version, rank)

        def write(folder: Path) -> None:
            model.save_pretrained(folder, save_embedding_layers=False)
            self.policy.tokenizer().save_pretrained(folder)
            BaseModel(str(self.base), None, weights_digest(self.base)).write(folder)
            change(folder)

        sums = tuple(logprob_of(model, *pair) for pair in zip(SEQUENCES, CUTS, strict=True))
        canary = Canary(token_ids=SEQUENCES, prompt_lengths=CUTS, logprobs=sums)
        return self.store.publish("run", version, version, write, canary=canary, steps_per_version=1)

    def snapshot(self, version: int, **options: Any) -> Snapshot:
        return self.store.fetch(self.publish(version, **options))


def altered(snapshot: Snapshot, change: Callable[[dict[str, Tensor]], None], *, manifest_agrees: bool) -> Snapshot:
    """The snapshot with other tensors in its files."""
    path = snapshot.directory / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return replace(snapshot, tensors=tuple(tensors)) if manifest_agrees else snapshot
