"""What the vLLM engine reads of a version's folder by itself, before it lets vLLM at it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig

from services.generator.base_folder import base_folder
from services.generator.engine import LoadError
from tba_common.base_model import ADAPTER_CONFIG, BaseModel, is_adapter
from tba_common.weights import Snapshot

Shapes = dict[str, tuple[int, ...]]
#: The ranks that vLLM makes room for.
_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def tensor_shapes(snapshot: Snapshot) -> Shapes:
    """Name and shape of every tensor of a version; only the headers of its files are read.

    Raises:
        LoadError: unreadable, or other names than the manifest has.
    """
    shapes: Shapes = {}
    try:
        for path in sorted(snapshot.directory.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise LoadError(f"version {snapshot.version}: {error}") from error
    if odd := sorted(shapes.keys() ^ set(snapshot.tensors)):
        raise LoadError(f"version {snapshot.version}: files and manifest disagree on {odd[:3]}")
    return shapes


def check_fit(version: int, expected: Shapes, got: Shapes) -> None:
    """Refuse a version before vLLM touches it: one that fails on the way leaves an engine without weights.

    Raises:
        LoadError: a tensor is missing, extra or misshapen.
    """
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise LoadError(
                f"version {version}: tensor {name}: expected shape {expected.get(name)}, got {got.get(name)}"
            )


def base_of(snapshot: Snapshot) -> Path:
    """The folder of whole weights that a version stands for: its own, or the base that its adapter lies on.

    Raises:
        LoadError: the base is not here, or is another.
    """
    if not is_adapter(snapshot.directory):
        return snapshot.directory
    try:
        return base_folder(BaseModel.of(snapshot.directory))
    except (OSError, ValueError) as error:
        raise LoadError(f"version {snapshot.version}: {error}") from error


def lora_options(directory: Path) -> dict[str, Any]:
    """vLLM's options for adapters like this one; none for whole weights."""
    if not is_adapter(directory):
        return {}
    rank = json.loads((directory / ADAPTER_CONFIG).read_text())["r"]
    room = next(known for known in _RANKS if known >= rank)
    return {"enable_lora": True, "max_lora_rank": room, "max_loras": 4, "max_cpu_loras": 8}


def eos_token_ids(base: Path, tokenizer: Any) -> list[int]:
    """Every token that ends a completion."""
    try:
        found = GenerationConfig.from_pretrained(base, local_files_only=True).eos_token_id
    except OSError:  # a folder may have none
        found = None
    return sorted({*(found if isinstance(found, list) else [found]), tokenizer.eos_token_id} - {None})
