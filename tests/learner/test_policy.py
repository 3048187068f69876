"""The policy's numbers: log-probabilities as a plain softmax gives them, and the same after a trip to the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from services.learner.collate import Rows, pad_rows
from services.learner.policy import CANARY_TEXTS, Policy, sequence_logprob
from tba_common.weights import WeightStore
from tests.learner.groups import EOS, PAD
from tests.learner.small_policy import write_small

pytestmark = pytest.mark.integration

#: Pairs of prompt and completion, of unequal lengths on both sides.
PAIRS: Final = [([19, 14, 20], [40, 41, EOS]), ([25], [42, EOS]), ([19, 30, 31, 32, 33], [43, 44, 45, 46, EOS])]


def rows(*, temperature: float = 1.0, pad_token_id: int = PAD) -> Rows:
    return pad_rows(PAIRS, temperature=[temperature] * len(PAIRS), pad_token_id=pad_token_id)


@torch.no_grad()
def plain_logprob(model: Any, prompt: list[int], completion: list[int], temperature: float) -> float:
    """One sequence alone, without padding, its full softmax in float64."""
    ids = torch.tensor([prompt + completion])
    logprobs = (model(input_ids=ids).logits[0].double() / temperature).softmax(-1).log()
    return float(sum(logprobs[i - 1, ids[0, i]] for i in range(len(prompt), ids.shape[1])))


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_the_log_probability_is_that_of_a_plain_softmax_of_each_sequence_alone(
    policy: Policy, temperature: float
) -> None:
    expected = [plain_logprob(policy.model, *pair, temperature) for pair in PAIRS]
    assert policy.logprob(rows(temperature=temperature)).tolist() == pytest.approx(expected, rel=1e-5)


def test_each_row_has_its_own_temperature(policy: Policy) -> None:
    mixed = pad_rows(PAIRS, temperature=[0.5, 1.0, 2.0], pad_token_id=PAD)
    expected = [plain_logprob(policy.model, *pair, t) for pair, t in zip(PAIRS, (0.5, 1.0, 2.0), strict=True)]
    assert policy.logprob(mixed).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("pad_token_id", [EOS, 40, 97])
def test_what_fills_the_padding_does_not_matter(policy: Policy, pad_token_id: int) -> None:
    assert torch.equal(policy.logprob(rows(pad_token_id=pad_token_id)), policy.logprob(rows()))


def test_the_prompt_s_tokens_count_only_as_context(policy: Policy) -> None:
    parts = [pad_rows([([19], [14, 20, 40])], temperature=[1.0], pad_token_id=PAD)]
    parts += [pad_rows([([19], [14, 20])], temperature=[1.0], pad_token_id=PAD)]
    parts += [pad_rows([([19, 14, 20], [40])], temperature=[1.0], pad_token_id=PAD)]
    whole, start, end = (policy.logprob(part).item() for part in parts)
    assert whole == pytest.approx(start + end, rel=1e-5)


def test_the_log_ratio_to_the_reference_is_exactly_zero_before_the_first_step(policy: Policy) -> None:
    assert torch.equal(policy.logprob(rows()), policy.ref_logprob(rows()))


def test_the_reference_stays_when_the_policy_moves(policy: Policy) -> None:
    before = policy.ref_logprob(rows())
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(0.5)
    assert torch.equal(policy.ref_logprob(rows()), before)
    assert not torch.equal(policy.logprob(rows()), before)


def test_the_gradient_reaches_every_weight_of_the_policy_and_none_of_the_reference(policy: Policy) -> None:
    torch.autograd.backward((policy.logprob(rows()) - policy.ref_logprob(rows())).sum())
    assert all(parameter.grad is not None for parameter in policy.model.parameters())
    assert not any(parameter.requires_grad for parameter in policy.reference.parameters())


def test_weights_are_float32_and_nothing_drops_out(policy: Policy) -> None:
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.float32}
    assert not policy.model.training


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_loads_as_the_same_policy(tmp_path: Path, *, tied: bool) -> None:
    policy = Policy.load(str(write_small(tmp_path / "start", tied=tied)), device="cpu")
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.01)
    policy.save(tmp_path / "saved")
    again = Policy.load(str(tmp_path / "saved"), device="cpu")
    assert torch.equal(again.logprob(rows()), policy.logprob(rows()))
    assert torch.equal(again.ref_logprob(rows()), policy.logprob(rows()))
    assert again.tokenizer("1+2=")["input_ids"] == policy.tokenizer("1+2=")["input_ids"]


def test_only_safetensors_are_written_and_they_hold_float32(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    assert not {path.suffix for path in tmp_path.iterdir()} & {".bin", ".pt", ".pth", ".pkl", ".py"}
    tensors: dict[str, Tensor] = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_pickled_model_is_refused(model: Path, tmp_path: Path) -> None:
    for path in model.iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(model / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        Policy.load(str(tmp_path), device="cpu")


def test_the_canary_says_what_a_plain_softmax_says(policy: Policy) -> None:
    canary = policy.canary()
    assert len(canary.token_ids) == len(CANARY_TEXTS)
    expected = [
        plain_logprob(policy.model, list(ids[:cut]), list(ids[cut:]), 1.0)
        for ids, cut in zip(canary.token_ids, canary.prompt_lengths, strict=True)
    ]
    assert list(canary.logprobs) == pytest.approx(expected, rel=1e-5)


def test_the_canary_comes_back_from_the_store_as_it_was_and_other_weights_have_another(
    policy: Policy, tmp_path: Path
) -> None:
    store = WeightStore(tmp_path / "weights")
    canary = policy.canary()
    store.publish("run", 0, 0, policy.save, canary=canary, steps_per_version=1)
    loaded = Policy.load(str(store.find(0).directory), device="cpu")
    other = Policy.load(str(write_small(tmp_path / "other", seed=1)), device="cpu")
    assert loaded.canary() == store.find(0).canary == canary
    assert other.canary() != canary


def test_no_progress_bar_is_in_the_log(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Policy.load(str(model), device="cpu").save(tmp_path)
    assert "%" not in "".join(capfd.readouterr())


def test_a_sequence_may_be_shorter_than_another_s_prompt(policy: Policy) -> None:
    pairs = [([19], [40]), ([19] * 6, [41, EOS])]
    padded = pad_rows(pairs, temperature=[1.0, 1.0], pad_token_id=PAD)
    expected = [plain_logprob(policy.model, *pair, 1.0) for pair in pairs]
    assert sequence_logprob(policy.model, padded).tolist() == pytest.approx(expected, rel=1e-5)
