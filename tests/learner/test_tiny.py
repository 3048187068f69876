"""The policy from scratch goes through the same doors as a real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.learner.tiny import tiny_model, tiny_tokenizer, write_tiny
from services.learner.tiny_tokens import CHARACTERS

pytestmark = pytest.mark.integration


def test_a_character_is_a_token_and_nothing_is_added() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer(CHARACTERS)["input_ids"]
    assert len(ids) == len(set(ids)) == len(CHARACTERS) == 96
    assert tokenizer.convert_ids_to_tokens(ids) == list(CHARACTERS)


@pytest.mark.parametrize("text", ["12+34=46", "  two  spaces ,\nand a line .", CHARACTERS, ""])
def test_decoding_gives_the_text_back(text: str) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_padding_and_end_are_two_tokens_that_no_text_contains() -> None:
    tokenizer = tiny_tokenizer()
    special = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    assert len(special) == 3
    assert special.isdisjoint(tokenizer(CHARACTERS)["input_ids"])
    assert len(tokenizer) == 99


def test_a_character_it_does_not_know_is_one_unknown_token() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer("aé中b")["input_ids"].count(tokenizer.unk_token_id) == 2


def test_the_saved_folder_loads_in_hugging_face(tmp_path: Path) -> None:
    parameters = write_tiny(tmp_path, seed=3)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert 850_000 < parameters < 900_000
    assert tokenizer.padding_side == "left"
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    expected = tiny_model(tokenizer, seed=3).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_another_seed_is_another_policy() -> None:
    tokenizer = tiny_tokenizer()
    first, second = (tiny_model(tokenizer, seed=seed).lm_head.weight for seed in (0, 1))
    assert not torch.equal(first, second)


def test_words_may_be_the_tokens_and_are_read_back_with_one_space_between_them() -> None:
    tokenizer = tiny_tokenizer("the cat ate it. TL;DR:")
    ids = tokenizer("the cat ate it. the dog")["input_ids"]
    assert len(ids) == 7
    assert ids[-1] == tokenizer.unk_token_id
    assert tokenizer.decode(ids[:-1]) == "the cat ate it . the"
    assert tokenizer("TL;DR: the")["input_ids"] == tokenizer("TL;DR:the")["input_ids"]
