"""Runs inside vLLM's own process, mixed into its worker: loads a version in place and counts what it loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload


class VersionLoader:
    """`worker_extension_cls` of the engine. Its methods are called by name, through `collective_rpc`."""

    vllm_config: Any
    model_runner: Any

    def load_version(self, directory: str) -> list[str]:
        """Load every tensor of a Hugging Face folder and return the names of those that were read.

        The names and shapes were checked before: once this has begun, a failure leaves no weights at all.

        Raises:
            ValueError: the model has parameters that no tensor reached.
        """
        model = self.model_runner.get_model()
        expected = {name for name, _ in model.named_parameters()}
        read: list[str] = []
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(model)
            loaded = model.load_weights(_tensors(Path(directory), read))
            finalize_layerwise_reload(model, self.vllm_config.model_config)
            self.repair(model)
        if missed := expected - loaded:
            raise ValueError(f"no tensor reached {sorted(missed)[:3]} of {directory}")
        return read

    def repair(self, model: nn.Module) -> None:
        """Pack a tied head again: on CPU vLLM 0.32 keeps it in a layout of its own, and a reload forgets it."""
        head: Any = getattr(model, "lm_head", None)
        if self.vllm_config.device_config.device_type == "cpu" and head is not None:
            head.quant_method.process_weights_after_loading(head)


def _tensors(directory: Path, read: list[str]) -> Iterator[tuple[str, Tensor]]:
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                read.append(name)
                yield name, file.get_tensor(name)
