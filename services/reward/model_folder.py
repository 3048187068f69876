"""Where a model's files are, and the digest that names exactly them in the ledger of scores."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

#: What a model is made of. Pickled weights and code are not among it, and are never fetched.
_FILES: Final = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


def model_folder(model: str, revision: str | None) -> Path:
    """The folder of a model; one of the hub is fetched at its revision, or found in the cache.

    Raises:
        OSError: no such folder, and no such model on the hub.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, allow_patterns=list(_FILES)))


def model_digest(folder: Path) -> str:
    """sha256 over the name and sha256 of every file that a model is made of, tokenizer and configuration too.

    Raises:
        OSError: the folder has no safetensors file.
    """
    paths = sorted({path for pattern in _FILES for path in folder.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in paths):
        raise FileNotFoundError(f"{folder}: expected weights in a .safetensors file, got none")
    manifest = {path.name: _sha256(path) for path in paths}
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
