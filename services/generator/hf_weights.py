"""Published weights as a transformers model: read with every tensor counted, and copied into one that runs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from tba_common.weights import Snapshot


def read_snapshot(snapshot: Snapshot, dtype: torch.dtype) -> Any:
    """The snapshot's model on the CPU, with not a tensor more or less than its manifest names.

    Raises:
        ValueError: tensors that the manifest, the files and the model do not agree on.
    """
    check_names(snapshot)
    return read_model(snapshot.directory, dtype)


def check_names(snapshot: Snapshot) -> None:
    """Raise ValueError where files and manifest differ in their tensors."""
    names: set[str] = set()
    for path in snapshot.directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    different = names ^ set(snapshot.tensors)
    if different:
        raise ValueError(f"files and manifest differ in tensors {sorted(different)}")


def read_model(folder: Path, dtype: torch.dtype, *, ignored: Collection[str] = ()) -> Any:
    """A folder's model on the CPU: local files, safetensors, nobody's code.

    `ignored` are kinds of disagreement that do not matter, as transformers calls them.

    Raises:
        ValueError: tensors that the files and the model do not agree on.
    """
    # What transformers would warn of is an error below, and its bars are not for a service's log.
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained  # its type does not know `output_loading_info`
    model, report = from_pretrained(
        folder,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # so that they are reported
        output_loading_info=True,
    )
    wrong = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys and kind not in ignored}
    if wrong:
        raise ValueError(f"weights do not fit the model: {wrong}")
    return model


def copy_weights(fresh: Any, model: Any) -> None:
    """Copy into the model's own memory; a tied head follows, being that memory.

    Raises:
        ValueError: another architecture; nothing was copied.
    """
    ours = {name: tensor.shape for name, tensor in model.state_dict().items()}
    theirs = {name: tensor.shape for name, tensor in fresh.state_dict().items()}
    if ours != theirs:
        different = sorted({name for name, _ in ours.items() ^ theirs.items()})
        raise ValueError(f"another architecture than was loaded first, different in {different}")
    model.load_state_dict(fresh.state_dict(), strict=True)
