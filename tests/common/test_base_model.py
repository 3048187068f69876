"""A base is known by its weights: any change of them shows, and how they lie in files does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tba_common.base_model import ADAPTER_CONFIG, BaseModel, is_adapter, weights_digest

Tensors = dict[str, Any]


def tensors() -> Tensors:
    return {f"layer.{i}": np.full((40, 40), i, np.float32) for i in range(4)}


def folder(directory: Path, weights: Tensors) -> Path:
    directory.mkdir()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_the_same_weights_in_several_files_have_the_same_digest(tmp_path: Path) -> None:
    whole, parts = folder(tmp_path / "whole", tensors()), tmp_path / "parts"
    parts.mkdir()
    placed = {name: f"model-0000{i % 2}.safetensors" for i, name in enumerate(tensors())}
    for file in set(placed.values()):
        save_file({name: tensor for name, tensor in tensors().items() if placed[name] == file}, parts / file)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    save_file({"other": np.zeros(3)}, parts / "consolidated.safetensors")
    assert weights_digest(parts) == weights_digest(whole)


def change_a_number(weights: Tensors) -> None:
    weights["layer.2"][0, 3] += 1


def change_the_type(weights: Tensors) -> None:
    weights["layer.2"] = weights["layer.2"].view(np.int32)


def change_the_shape(weights: Tensors) -> None:
    weights["layer.2"] = weights["layer.2"].reshape(20, 80)


def change_a_name(weights: Tensors) -> None:
    weights["layer.9"] = weights.pop("layer.2")


def swap_two(weights: Tensors) -> None:
    weights["layer.1"], weights["layer.2"] = weights["layer.2"], weights["layer.1"]


@pytest.mark.parametrize("change", [change_a_number, change_the_type, change_the_shape, change_a_name, swap_two])
def test_other_weights_have_another_digest(tmp_path: Path, change: Callable[[Tensors], None]) -> None:
    changed = tensors()
    change(changed)
    assert weights_digest(folder(tmp_path / "a", tensors())) != weights_digest(folder(tmp_path / "b", changed))


def test_a_folder_without_weights_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        weights_digest(tmp_path)


def test_an_adapter_s_folder_tells_its_base(tmp_path: Path) -> None:
    assert not is_adapter(tmp_path)
    base = BaseModel("acme/model", "abc", "123")
    (tmp_path / ADAPTER_CONFIG).write_text('{"base_model_name_or_path": "acme/model", "revision": "abc", "r": 4}')
    base.write(tmp_path)
    assert is_adapter(tmp_path)
    assert BaseModel.of(tmp_path) == base


def test_an_adapter_that_does_not_tell_its_base_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ADAPTER_CONFIG).write_text('{"base_model_name_or_path": "acme/model", "revision": null}')
    with pytest.raises(FileNotFoundError, match=r"base\.json"):
        BaseModel.of(tmp_path)
    (tmp_path / "base.json").write_text("{}")
    with pytest.raises(ValueError, match="do not tell the base's 'digest'"):
        BaseModel.of(tmp_path)
