"""Which base model an adapter lies on: the digest of its weights, in `base.json` beside the adapter.

An adapter fits every base of the same shapes and is nonsense over all but one. Law: who publishes an adapter writes
the digest of the base it was trained over; who loads it refuses another. The rest of the folder is PEFT's format.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ADAPTER_CONFIG: Final = "adapter_config.json"
BASE: Final = "base.json"
#: Of each tensor: enough to tell bases apart, since training moves every matrix, and cheap at any size.
_SAMPLE_BYTES: Final = 4096


@dataclass(frozen=True)
class BaseModel:
    """The base of an adapter: a folder or hub id, the hub's revision, and the digest of its weights."""

    name: str
    revision: str | None
    digest: str

    @classmethod
    def of(cls, adapter: Path) -> BaseModel:
        """The base that an adapter's folder names.

        Raises:
            OSError: the folder has no `adapter_config.json` or no `base.json`.
            ValueError: one of them is not what it should be.
        """
        config, base = (json.loads((adapter / name).read_text()) for name in (ADAPTER_CONFIG, BASE))
        try:
            return cls(config["base_model_name_or_path"], config["revision"], base["digest"])
        except KeyError as error:
            raise ValueError(f"{adapter}: {ADAPTER_CONFIG} and {BASE} do not tell the base's {error}") from error

    def write(self, adapter: Path) -> None:
        """Write `base.json` into an adapter's folder; name and revision are in PEFT's own file."""
        (adapter / BASE).write_text(json.dumps({"digest": self.digest}))


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter instead of a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def weights_digest(folder: Path) -> str:
    """A digest of a Hugging Face folder's weights: of every tensor its name, type, shape and first bytes.

    How the tensors are divided into files does not matter.

    Raises:
        OSError: a safetensors file is missing.
    """
    described = sorted(line for path in _weight_files(folder) for line in _described(path))
    return hashlib.sha256("\n".join(described).encode()).hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    """Those that transformers loads: a hub folder may hold the same weights in other layouts beside them."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    return [folder / name for name in set(json.loads(index.read_text())["weight_map"].values())]


def _described(path: Path) -> Iterator[str]:
    # The safetensors format: a little-endian u64 length, a JSON header by tensor name, and the tensors' bytes.
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            begin, end = tensor["data_offsets"]
            file.seek(8 + length + begin)
            sample = hashlib.sha256(file.read(min(end - begin, _SAMPLE_BYTES))).hexdigest()
            yield f"{name} {tensor['dtype']} {tensor['shape']} {sample}"
