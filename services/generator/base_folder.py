"""The base of an adapter as a folder on this machine, proven to be the one that the adapter was trained over."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from huggingface_hub import snapshot_download

from tba_common.base_model import BaseModel, weights_digest

#: A hub repository may hold the same weights in other formats too; these are those that the digest is of.
_PATTERNS: Final = ("*.json", "model*.safetensors")


def base_folder(base: BaseModel) -> Path:
    """The base's folder; a hub id is downloaded at its revision, unless the hub's cache has it.

    Raises:
        OSError: no such folder, or neither cache nor hub has it.
        ValueError: other weights than the adapter was trained over.
    """
    folder = Path(base.name)
    if not folder.is_dir():
        if folder.is_absolute():
            raise FileNotFoundError(f"base model {base.name}: expected that folder on this machine too, found none")
        folder = Path(snapshot_download(base.name, revision=base.revision, allow_patterns=list(_PATTERNS)))
    digest = weights_digest(folder)
    if digest != base.digest:
        raise ValueError(f"base model {base.name}: expected weights of digest {base.digest}, got {digest}")
    return folder
