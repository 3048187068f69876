"""A model goes into a GGUF file as llama.cpp writes it, and comes back: every tensor, the tokenizer, the template."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from services.learner.gguf_import import import_gguf

pytestmark = pytest.mark.integration

#: One token a character, and one merge: what a byte-level BPE needs at least.
TOKENS: Final = ["<|end|>", *"0123456789+=", "Ċ", "12"]
TEMPLATE: Final = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
HEADS: Final = 4
KEY_VALUE_HEADS: Final = 2
OF_A_LAYER: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PACKED: Final = gguf.GGMLQuantizationType.Q4_1


@pytest.fixture(scope="module")
def source() -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a small Llama with a tied head, by their Hugging Face names."""
    llama: Any = LlamaForCausalLM
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return {name: tensor.numpy() for name, tensor in llama(config).state_dict().items() if name != "lm_head.weight"}


@pytest.fixture(scope="module")
def folder(source: dict[str, np.ndarray[Any, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the import makes of these tensors."""
    directory = tmp_path_factory.mktemp("gguf")
    write_gguf(directory / "small.gguf", source)
    assert import_gguf(directory / "small.gguf", directory / "model") == sum(t.size for t in source.values())
    return directory / "model"


def names() -> dict[str, str]:
    """Hugging Face name -> GGUF name."""
    layers = {
        f"model.layers.{i}.{theirs}.weight": f"blk.{i}.{ours}.weight"
        for i in (0, 1)
        for ours, theirs in OF_A_LAYER.items()
    }
    return {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        **layers,
    }


def is_packed(name: str) -> bool:
    return name.endswith("_proj.weight")


def permuted(name: str, tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The rows of a query or key head as llama.cpp orders them, pairs of the rotation side by side."""
    heads = {"q_proj": HEADS, "k_proj": KEY_VALUE_HEADS}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, tensor.shape[1])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def write_gguf(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_vocab_size(len(TOKENS))
    writer.add_embedding_length(128)
    writer.add_feed_forward_length(64)
    writer.add_block_count(2)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["1 2"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, packed_name in names().items():
        tensor = permuted(name, tensors[name])
        if is_packed(name):
            writer.add_tensor(packed_name, quantize(tensor, PACKED), raw_dtype=PACKED)
        else:
            writer.add_tensor(packed_name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_every_tensor_is_its_source_rounded_as_the_file_rounds(
    folder: Path, source: dict[str, np.ndarray[Any, Any]]
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    loaded = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert np.array_equal(loaded.pop("lm_head.weight"), loaded["model.embed_tokens.weight"])
    assert loaded.keys() == source.keys()
    for name, tensor in source.items():
        expected = dequantize(quantize(tensor, PACKED), PACKED) if is_packed(name) else tensor
        assert loaded[name].dtype == np.float32
        assert np.array_equal(loaded[name], expected), name


def test_the_tokenizer_and_its_chat_template_come_along(folder: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("12+3=")["input_ids"] == [TOKENS.index(token) for token in ("12", "+", "3", "=")]
    assert tokenizer.eos_token_id == 0
    message = [{"role": "user", "content": "1+1"}]
    assert tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False) == "1+1="


def test_nothing_says_that_it_was_packed(folder: Path) -> None:
    assert "quant" not in (folder / "config.json").read_text()
    assert not list(folder.parent.glob("*.tmp"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no GGUF file at .*missing\.gguf"):
        import_gguf(tmp_path / "missing.gguf", tmp_path / "model")
