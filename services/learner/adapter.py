"""The door to PEFT: low-rank adapters (LoRA, arXiv:2106.09685) on every linear layer of a frozen base.

The policy is the base with its adapter on, the reference the same model with it off: one copy of the base serves
both. What is published is PEFT's own folder of megabytes, and beside it the digest of the base.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, get_peft_model
from transformers.utils.hub import cached_file, extract_commit_hash

from tba_common.base_model import BaseModel, weights_digest

#: alpha / rank, so that a learning rate found at one rank is worth something at another. 2 is the field's usual value.
SCALE: Final = 2
#: A learner that dies before its first checkpoint must come back with the adapter it had.
_SEED: Final = 0


@dataclass(frozen=True)
class Adapter:
    """A model with an adapter, and what the adapter lies on."""

    model: Any  # peft.PeftModel
    base: BaseModel

    @classmethod
    def over(cls, model: Any, name: str, *, rank: int) -> Adapter:
        """Freeze `model`, which was loaded by `name` (folder or hub id), and lay a new adapter over it.

        Its up-projections are zero: until the first step it changes nothing.
        """
        base = _base(name)
        config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=SCALE * rank, target_modules="all-linear")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_SEED)
            adapted: Any = get_peft_model(model, config, revision=base.revision)
        config.base_model_name_or_path = base.name
        return cls(adapted.eval(), base)

    def reference(self, **inputs: Any) -> Any:
        """The forward pass of the base alone."""
        with self.model.disable_adapter():
            return self.model(**inputs)

    def save(self, directory: Path) -> None:
        """Write the adapter as PEFT does, and the digest of its base."""
        self.model.save_pretrained(directory, save_embedding_layers=False)  # "auto" asks the hub each time
        (directory / "README.md").unlink()  # a model card of empty headings
        self.base.write(directory)


def _base(name: str) -> BaseModel:
    config = str(cached_file(name, "config.json"))
    return BaseModel(
        name=str(Path(name).resolve()) if Path(name).is_dir() else name,
        revision=extract_commit_hash(config, None),  # what a hub id stands for today; None for a folder
        digest=weights_digest(Path(config).parent),
    )
