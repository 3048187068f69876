"""The door to the models that score: read once, never trained. Only safetensors, no remote code, no missing weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from services.reward.model_folder import model_digest, model_folder
from services.reward.model_settings import ModelSettings
from tba_common.codec import BadMessage

# Its bars are not for a service's log.
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class FrozenModel:
    """A model with its tokenizer. `max_tokens` is what it can read at once, `version` names its files and dtype."""

    model: Any  # transformers.PreTrainedModel
    tokenizer: Any
    device: torch.device
    max_tokens: int
    version: str

    def check_length(self, tokens: int, what: str) -> None:
        """Refuse what would have to be cut off: the score of half a text is the score of another text.

        Raises:
            BadMessage: there is no token, or more than the model can read.
        """
        if not 0 < tokens <= self.max_tokens:
            raise BadMessage(f"{what}: expected 1 to {self.max_tokens} tokens, what the model reads, got {tokens}")

    def check_chat_template(self) -> None:
        """Refuse a tokenizer without a chat template.

        Raises:
            ValueError: it has none.
        """
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"{self.tokenizer.name_or_path}: expected a tokenizer with a chat template, got none in it"
            )


def load_frozen(kind: Any, settings: ModelSettings, *, dtype: Literal["float32"] | None = None) -> FrozenModel:
    """Load the settings' model as `kind`, one of transformers' Auto classes; `dtype` overrides the settings'.

    Raises:
        OSError: no such model, or no safetensors in it.
        ValueError: the folder lacks weights that this kind has, so that they would be random.
    """
    assert settings.model is not None
    return load_folder(kind, model_folder(settings.model, settings.model_revision), settings, dtype=dtype)


def load_folder(
    kind: Any, folder: Path, settings: ModelSettings, *, dtype: Literal["float32"] | None = None
) -> FrozenModel:
    """As `load_frozen`, of a given folder."""
    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(found if settings.device == "auto" else settings.device)
    name = dtype or settings.dtype
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    model, loading = kind.from_pretrained(
        folder,
        dtype=_DTYPES[name],
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"]))
        raise ValueError(f"{folder}: expected the weights of a {type(model).__name__}, got none for {missing}")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return FrozenModel(
        model=model.to(device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        device=device,
        max_tokens=_max_tokens(model.config, tokenizer),
        version=f"{model_digest(folder)[:16]}/{name}",
    )


def right_padded(rows: Sequence[Sequence[int]], *, filler: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, [rows, width]; the mask goes by length, since a row may hold the filler itself."""
    width = max(map(len, rows))
    ids = [[*row, *[filler] * (width - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _max_tokens(config: Any, tokenizer: Any) -> int:
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or tokenizer.model_max_length
    if "roberta" in text.model_type:  # whose positions begin behind that of the padding
        positions -= text.pad_token_id + 1
    return min(int(positions), int(tokenizer.model_max_length))
