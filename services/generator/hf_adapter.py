"""The door to PEFT: a base that is loaded once, and versions that are laid over it as adapters, one at a time.

Every load gets a name of its own, `v000042_7`: version 42, the seventh load of this process. Whatever is cached
under a name, here or in PEFT, can therefore never belong to other weights.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any, Final

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from services.generator.base_folder import base_folder
from services.generator.hf_weights import check_names, read_model
from tba_common.base_model import BaseModel
from tba_common.weights import Snapshot

_TENSORS: Final = "adapter_model.safetensors"


class HotAdapters:
    """A base with the adapter of one version on; `name` is that adapter's."""

    def __init__(self, snapshot: Snapshot, dtype: torch.dtype) -> None:
        """Load the base that the snapshot's adapter lies on, and the adapter.

        Raises:
            OSError: the base is not to be had, or a file is missing.
            ValueError: another base than the adapter was trained over, or tensors that do not fit it.
        """
        self._base = BaseModel.of(snapshot.directory)
        self._loads = itertools.count(1)
        config, tensors = _read(snapshot)
        # Copied, because what was read is a map of files. Tensors that the model has no use for harm nobody here.
        base = copy.deepcopy(read_model(base_folder(self._base), dtype, ignored=("unexpected_keys",)))
        self.name = self._next_name(snapshot)
        self._peft = PeftModel(base, config, self.name, autocast_adapter_dtype=False)
        _fill(self._peft, self.name, tensors)

    @property
    def model(self) -> Any:
        """The transformers model itself, with adapters in its linear layers; loading changes it in place."""
        return self._peft.get_base_model()

    def load(self, snapshot: Snapshot) -> None:
        """Lay the snapshot's adapter over the base instead of the one that is on.

        Raises:
            OSError: a file is missing.
            ValueError: an adapter of another base, or tensors that do not fit; the one before is still on.
        """
        base = BaseModel.of(snapshot.directory)
        if base.digest != self._base.digest:
            raise ValueError(f"expected an adapter over {self._base}, got one over {base}")
        config, tensors = _read(snapshot)
        name = self._next_name(snapshot)
        self._peft.add_adapter(name, config, autocast_adapter_dtype=False)
        try:
            _fill(self._peft, name, tensors)
        except ValueError:
            self._peft.delete_adapter(name)
            raise
        self._peft.set_adapter(name, inference_mode=True)
        self._peft.delete_adapter(self.name)
        self.name = name

    def _next_name(self, snapshot: Snapshot) -> str:
        return f"v{snapshot.version:06d}_{next(self._loads)}"


def _read(snapshot: Snapshot) -> tuple[PeftConfig, dict[str, Tensor]]:
    check_names(snapshot)
    config = PeftConfig.from_pretrained(str(snapshot.directory))
    if not isinstance(config, LoraConfig):
        raise ValueError(f"expected an adapter of type LORA, got {config.peft_type}")
    return config, load_file(snapshot.directory / _TENSORS)


def _fill(model: PeftModel, name: str, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into the adapter of this name, if they are exactly what it is made of."""
    slots = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    ours = {(key, tuple(slot.shape)) for key, slot in slots.items()}
    theirs = {(key, tuple(tensor.shape)) for key, tensor in tensors.items()}
    if different := sorted(ours ^ theirs):
        raise ValueError(f"the adapter does not fit its base: {len(different)} tensors differ, {different[:4]}")
    set_peft_model_state_dict(model, tensors, adapter_name=name)
