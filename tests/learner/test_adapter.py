"""Adapters: only they move, the base alone is the reference, and what is published is PEFT's and small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.learner.checkpoint import TENSORS, CheckpointError, CheckpointStore, Progress
from services.learner.collate import Rows, pad_rows
from services.learner.policy import Policy, sequence_logprob
from services.learner.schedule import LearningRateSchedule
from services.learner.update import Updater
from tba_common.base_model import BaseModel, weights_digest
from tba_common.weights import WeightStore
from tests.learner.groups import EOS, PAD, batch
from tests.learner.small_policy import write_small

pytestmark = pytest.mark.integration

RANK: Final = 2
LINEAR_LAYERS: Final = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def adapted(model: Path, *, rank: int = RANK) -> Updater:
    policy = Policy.load(str(model), device="cpu", lora_rank=rank)
    return Updater(policy, learning_rate=1e-2, schedule=LearningRateSchedule(warmup=4), token_budget=4096)


def train(updater: Updater, steps: range) -> Updater:
    for step in steps:
        assert not updater.update(batch(step), step).skipped
    return updater


def rows() -> Rows:
    pairs = [([19, 14, 20], [40, 41, EOS]), ([25], [42, EOS]), ([19, 30, 31], [43, 44, EOS])]
    return pad_rows(pairs, temperature=[1.0, 0.7, 1.0], pad_token_id=PAD)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    return [name for name in first.keys() | second.keys() if not torch.equal(first[name], second[name])]


def state(updater: Updater) -> dict[str, Tensor]:
    """Every trained tensor and what the optimiser knows of it, by name."""
    tensors = dict(updater.policy.trained)
    for name, weight in updater.policy.trained.items():
        tensors |= {f"{moment} of {name}": value for moment, value in updater.optimizer.state[weight].items()}
    return tensors


def in_plain_peft(folder: Path) -> Any:
    """An adapter's folder as anybody would load it, without this platform."""
    config = json.loads((folder / "adapter_config.json").read_text())
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    return PeftModel.from_pretrained(from_pretrained(config["base_model_name_or_path"]), folder).eval()


def test_a_new_adapter_changes_nothing_to_the_last_bit(model: Path, policy: Policy) -> None:
    fresh = Policy.load(str(model), device="cpu", lora_rank=RANK)
    assert torch.equal(fresh.logprob(rows()), policy.logprob(rows()))
    assert torch.equal(fresh.logprob(rows()), fresh.ref_logprob(rows()))
    assert fresh.canary() == policy.canary()


def test_the_first_step_sees_no_distance_from_the_reference(model: Path) -> None:
    assert adapted(model).update(batch(1), 1).log_ratio == 0.0


def test_every_linear_layer_has_an_adapter_in_float32_and_the_head_has_none(model: Path) -> None:
    trained = Policy.load(str(model), device="cpu", lora_rank=RANK).trained
    assert {name.split(".")[-4] for name in trained} == LINEAR_LAYERS
    assert len(trained) == 2 * len(LINEAR_LAYERS)
    assert {weight.dtype for weight in trained.values()} == {torch.float32}


def test_the_gradient_is_in_the_adapter_only_and_only_the_adapter_moves(model: Path) -> None:
    updater = adapted(model)
    before = copied(dict(updater.policy.model.named_parameters()))
    train(updater, range(1, 3))
    after = dict(updater.policy.model.named_parameters())
    assert {name for name, weight in after.items() if weight.grad is not None} == set(updater.policy.trained)
    assert set(differing(after, before)) == set(updater.policy.trained)
    assert not updater.policy.model.training


def test_the_reference_is_the_base_alone_however_far_the_policy_moved(model: Path, policy: Policy) -> None:
    moved = train(adapted(model), range(1, 4)).policy
    assert torch.equal(moved.ref_logprob(rows()), policy.logprob(rows()))
    assert not torch.equal(moved.logprob(rows()), policy.logprob(rows()))


def test_the_reference_takes_no_second_copy_of_the_base(model: Path) -> None:
    policy = Policy.load(str(model), device="cpu", lora_rank=RANK)
    before = policy.ref_logprob(rows())
    with torch.no_grad():
        policy.model.get_base_model().model.norm.weight.mul_(0.5)
    assert not torch.equal(policy.ref_logprob(rows()), before)


def test_a_learner_that_dies_before_its_first_checkpoint_comes_back_with_the_same_adapter(model: Path) -> None:
    random_state = torch.get_rng_state()
    first, second = (Policy.load(str(model), device="cpu", lora_rank=RANK).trained for _ in range(2))
    assert differing(first, second) == []
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("kind", ["model", "tied_model"])
def test_three_steps_a_checkpoint_and_three_more_are_six_steps_bit_by_bit(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    straight = train(adapted(folder), range(1, 7))
    store = CheckpointStore(tmp_path)
    store.save(Progress(3, 3, 30), train(adapted(folder), range(1, 4)))
    resumed = adapted(folder)
    assert store.load(resumed) == Progress(3, 3, 30)
    train(resumed, range(4, 7))
    assert differing(state(resumed), state(straight)) == []


def test_a_checkpoint_holds_the_adapter_and_its_optimiser_and_nothing_of_the_base(model: Path, tmp_path: Path) -> None:
    updater = train(adapted(model), range(1, 2))
    CheckpointStore(tmp_path).save(Progress(1, 1, 10), updater)
    saved = load_file(tmp_path / "step-00000001" / TENSORS)
    kinds = ("model", "step", "exp_avg", "exp_avg_sq")
    assert saved.keys() == {"random_state", *(f"{kind}.{name}" for kind in kinds for name in updater.policy.trained)}


def test_a_checkpoint_of_another_rank_or_over_another_base_or_of_all_weights_is_refused(
    model: Path, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(Progress(1, 1, 10), adapted(model))
    with pytest.raises(CheckpointError, match="of another model: 14 tensors differ"):
        store.load(adapted(model, rank=RANK + 1))
    with pytest.raises(CheckpointError, match="adapter lies on base"):
        store.load(adapted(write_small(tmp_path / "other", seed=1)))
    with pytest.raises(CheckpointError, match=r"adapter lies on base .* expected None"):
        store.load(adapted(model, rank=0))


def test_a_published_adapter_is_small_and_plain_peft_gives_it_the_same_log_probabilities(
    model: Path, tmp_path: Path
) -> None:
    policy = train(adapted(model), range(1, 4)).policy
    store = WeightStore(tmp_path / "weights")
    store.publish("run", 3, 3, policy.save, canary=policy.canary(), steps_per_version=1)
    snapshot = store.find(3)
    bytes_of = {path.name: path.stat().st_size for path in snapshot.directory.iterdir()}
    assert bytes_of["adapter_model.safetensors"] < (model / "model.safetensors").stat().st_size / 4
    assert not {"model.safetensors", "README.md"} & bytes_of.keys()
    assert {name.split(".")[-2] for name in snapshot.tensors} == {"lora_A", "lora_B"}
    plain = in_plain_peft(snapshot.directory)
    with torch.no_grad():
        assert torch.equal(sequence_logprob(plain, rows()), policy.logprob(rows()))
    tokenizer = AutoTokenizer.from_pretrained(snapshot.directory)
    assert tokenizer("1+2=")["input_ids"] == policy.tokenizer("1+2=")["input_ids"]


def test_a_published_adapter_names_its_base_from_anywhere_and_by_its_weights(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    Policy.load(model.name, device="cpu", lora_rank=RANK).save(tmp_path)
    assert BaseModel.of(tmp_path) == BaseModel(str(model), None, weights_digest(model))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", RANK, 2 * RANK)
    assert {name.split(".")[-1] for name in config["target_modules"]} == LINEAR_LAYERS


def test_the_canary_is_that_of_the_policy_and_not_of_its_base(model: Path, policy: Policy) -> None:
    moved = train(adapted(model), range(1, 4)).policy
    assert moved.canary().token_ids == policy.canary().token_ids
    assert moved.canary().logprobs != policy.canary().logprobs


def test_an_adapter_is_not_taken_for_a_model_to_start_from(model: Path, tmp_path: Path) -> None:
    Policy.load(str(model), device="cpu", lora_rank=RANK).save(tmp_path)
    with pytest.raises(ValueError, match="holds an adapter, expected a whole model"):
        Policy.load(str(tmp_path), device="cpu")
