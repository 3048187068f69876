"""Versions that are adapters: hot-loaded over one base, under names that never come twice, or refused whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from peft.tuners.lora import LoraLayer
from torch import Tensor, zeros

from services.generator.engine import LoadError
from services.generator.hf_engine import HfEngine
from services.generator.weight_sync import canary_gap
from tests.generator.tiny_adapter import AdapterPublisher, altered
from tests.generator.tiny_policy import CUTS, SEQUENCES, Policy, Publisher, logprob_of, sample

pytestmark = pytest.mark.integration


def publisher_of(root: Path, policy: Policy) -> AdapterPublisher:
    adapters = AdapterPublisher(root, policy)
    adapters.write_base()
    return adapters


@pytest.fixture
def adapters(tmp_path: Path) -> AdapterPublisher:
    return publisher_of(tmp_path / "adapters", Policy())


@pytest.fixture
def engine(adapters: AdapterPublisher) -> HfEngine:
    """An engine with version 1 over the base."""
    engine = HfEngine(device="cpu", seed=7)
    engine.load(adapters.snapshot(1))
    return engine


def names(engine: HfEngine) -> set[str]:
    """The adapters that are in the model, on or off."""
    layers = [module for module in engine._model.modules() if isinstance(module, LoraLayer)]
    assert len(layers) == 2 * 7
    (found,) = {frozenset(layer.lora_A.keys()) for layer in layers}
    return set(found)


def greedy(engine: HfEngine) -> list[int]:
    token_ids: list[int] = sample(engine, temperature=0.0, max_new_tokens=20).completions[0].token_ids.tolist()
    return token_ids


@pytest.mark.parametrize("tied", [False, True])
def test_a_swap_of_adapters_equals_a_fresh_engine_and_plain_peft_on_the_same_version(
    tmp_path: Path, tied: bool
) -> None:
    adapters = publisher_of(tmp_path, Policy(tied=tied))
    swapped, fresh = HfEngine(device="cpu"), HfEngine(device="cpu")
    swapped.load(adapters.snapshot(1))
    before = greedy(swapped)
    snapshot = adapters.snapshot(2, rank=8)
    swapped.load(snapshot)
    fresh.load(snapshot)
    assert greedy(swapped) == greedy(fresh) != before
    assert swapped.logprobs(SEQUENCES, CUTS) == fresh.logprobs(SEQUENCES, CUTS)
    plain = adapters.model(2, rank=8)
    expected = [logprob_of(plain, *pair) for pair in zip(SEQUENCES, CUTS, strict=True)]
    np.testing.assert_allclose(swapped.logprobs(SEQUENCES, CUTS), expected, atol=1e-4)


def test_a_completion_carries_the_version_of_the_adapter_it_was_sampled_with(
    adapters: AdapterPublisher, engine: HfEngine
) -> None:
    assert {completion.policy_version for completion in sample(engine).completions} == {1}
    engine.load(adapters.snapshot(2))
    assert {completion.policy_version for completion in sample(engine).completions} == {2}


def test_one_adapter_is_in_memory_and_no_name_comes_twice_though_a_version_does(
    adapters: AdapterPublisher, engine: HfEngine
) -> None:
    first, second = adapters.store.find(1), adapters.snapshot(2)
    seen = [names(engine)]
    before = engine.logprobs(SEQUENCES, CUTS)
    for snapshot in (second, first, second, first):  # as after a canary that failed, or for an evaluation
        engine.load(snapshot)
        seen.append(names(engine))
    assert seen == [{"v000001_1"}, {"v000002_2"}, {"v000001_3"}, {"v000002_4"}, {"v000001_5"}]
    assert engine.logprobs(SEQUENCES, CUTS) == before


def test_in_bfloat16_the_adapter_follows_its_base_and_still_proves_itself(adapters: AdapterPublisher) -> None:
    engine = HfEngine(device="cpu", dtype="bfloat16")
    snapshot, other = adapters.snapshot(1), adapters.snapshot(2)
    engine.load(snapshot)
    assert {str(weight.dtype) for weight in engine._model.parameters()} == {"torch.bfloat16"}
    ours = engine.logprobs(SEQUENCES, CUTS)
    assert canary_gap(snapshot.canary, ours) < 0.1 < canary_gap(other.canary, ours)


def drop_a_tensor(tensors: dict[str, Tensor]) -> None:
    del tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]


def add_a_tensor(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.lm_head.lora_B.weight"] = zeros(1)


def reshape_a_tensor(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] = zeros(3, 32)


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("manifest_agrees", [True, False])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (drop_a_tensor, r"layers.1.mlp.up_proj.lora_B"),
        (add_a_tensor, r"lm_head.lora_B"),
        (reshape_a_tensor, r"layers.0.self_attn.q_proj.lora_A.weight', \(3, 32\)"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_the_one_before_stays_on(
    adapters: AdapterPublisher,
    engine: HfEngine,
    damage: Callable[[dict[str, Tensor]], None],
    reason: str,
    manifest_agrees: bool,
    is_first: bool,
) -> None:
    good = adapters.snapshot(3)
    bad = altered(adapters.snapshot(2), damage, manifest_agrees=manifest_agrees)
    refusing = HfEngine(device="cpu") if is_first else engine
    before = engine.logprobs(SEQUENCES, CUTS)
    with pytest.raises(LoadError, match=f"version 2: .*{reason}"):
        refusing.load(bad)
    assert refusing.policy_version == (None if is_first else 1)
    assert engine.logprobs(SEQUENCES, CUTS) == before
    assert names(engine) == {"v000001_1"}
    refusing.load(good)
    assert canary_gap(good.canary, refusing.logprobs(SEQUENCES, CUTS)) < 1e-4


def test_an_adapter_of_another_base_is_refused_by_the_digest_of_the_base_s_weights(
    adapters: AdapterPublisher, engine: HfEngine, tmp_path: Path
) -> None:
    other = publisher_of(tmp_path / "other", Policy(seed=5)).snapshot(2)
    before = engine.logprobs(SEQUENCES, CUTS)
    with pytest.raises(LoadError, match=r"version 2: expected an adapter over .*adapters/base.*got one over .*other"):
        engine.load(other)
    assert (engine.policy_version, engine.logprobs(SEQUENCES, CUTS)) == (1, before)


def test_a_base_that_is_not_what_the_adapter_was_trained_over_is_refused(
    adapters: AdapterPublisher, tmp_path: Path
) -> None:
    snapshot = adapters.snapshot(1)
    shutil.rmtree(adapters.base)
    with pytest.raises(LoadError, match="expected that folder on this machine too, found none"):
        HfEngine(device="cpu").load(snapshot)
    Policy(seed=5).model().save_pretrained(adapters.base)
    with pytest.raises(LoadError, match=r"expected weights of digest .*, got "):
        HfEngine(device="cpu").load(snapshot)


def of_another_kind(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "IA3", "base_model_name_or_path": "", "revision": None}))


def without_a_digest(folder: Path) -> None:
    (folder / "base.json").unlink()


@pytest.mark.parametrize(("change", "reason"), [(of_another_kind, "LORA, got .*IA3"), (without_a_digest, "base.json")])
def test_a_folder_that_is_not_an_adapter_of_ours_is_refused(
    adapters: AdapterPublisher, engine: HfEngine, change: Callable[[Path], None], reason: str
) -> None:
    with pytest.raises(LoadError, match=reason):
        engine.load(adapters.snapshot(2, change=change))
    assert names(engine) == {"v000001_1"}


def test_whole_weights_and_adapters_do_not_follow_one_another(
    adapters: AdapterPublisher, engine: HfEngine, publisher: Publisher
) -> None:
    before = engine.logprobs(SEQUENCES, CUTS)
    with pytest.raises(LoadError, match="another architecture"):
        engine.load(publisher.snapshot(2, Policy(seed=2)))
    assert (engine.policy_version, engine.logprobs(SEQUENCES, CUTS)) == (1, before)
    whole = HfEngine(device="cpu")
    whole.load(publisher.store.find(2))
    with pytest.raises(LoadError, match="expected whole weights, as were loaded first, got an adapter"):
        whole.load(adapters.store.find(1))
    assert whole.policy_version == 2


def test_an_engine_lives_on_when_adapter_and_base_are_deleted(adapters: AdapterPublisher, engine: HfEngine) -> None:
    engine.load(adapters.snapshot(2))
    before = engine.logprobs(SEQUENCES, CUTS)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(adapters.root) in line]
    assert mapped == []
    shutil.rmtree(adapters.root)
    assert engine.logprobs(SEQUENCES, CUTS) == before
