"""From a GGUF file to a Hugging Face folder: tokenizer, chat template, and every weight as plain float32.

GGUF is what quantised models are handed around in; training needs weights that can move.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from services.learner.policy import save_model
from tba_common.disk import new_directory

# Their types say nothing of parameters.
_Gguf: Final[Any] = GgufConfig
_Model: Final[Any] = AutoModelForCausalLM


def import_gguf(file: Path, out: Path) -> int:
    """Write the model of a GGUF file as a Hugging Face folder, whole or not at all; returns its parameters.

    Raises:
        OSError: no such file, or `out` exists.
        ValueError: not a GGUF file, or one of an architecture that transformers cannot unpack.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no GGUF file at {file}")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    where: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    unpacked = _Model.from_pretrained(**where, dtype="float32", quantization_config=_Gguf(dequantize=True))
    # A model of its own, so that nothing on disk says that it was ever packed.
    model = _Model.from_config(unpacked.config)
    model.load_state_dict(unpacked.state_dict(), strict=True)
    with new_directory(out) as aside:
        save_model(model, tokenizer, aside)
    return sum(parameter.numel() for parameter in model.parameters())
