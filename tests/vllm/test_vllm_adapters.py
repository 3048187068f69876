"""Adapters on vLLM: hot, under names that never come again, and nothing stands still for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from services.generator.engine import Finished, LoadError
from services.generator.vllm_engine import VllmEngine
from services.generator.weight_sync import canary_gap
from tba_common.weights import Snapshot
from tests.generator.tiny_adapter import AdapterPublisher
from tests.generator.tiny_policy import CONTEXT, REQUEST
from tests.vllm.conftest import POLICY


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> AdapterPublisher:
    publisher = AdapterPublisher(tmp_path_factory.mktemp("adapters"), POLICY)
    publisher.write_base()
    return publisher


@pytest.fixture(scope="module")
def engine(adapters: AdapterPublisher) -> Iterator[VllmEngine]:
    engine = VllmEngine(max_batch_completions=8, cache_bytes=2**26)
    engine.load(adapters.snapshot(0))
    yield engine
    engine.close()


def proven(engine: VllmEngine, snapshot: Snapshot) -> float:
    canary = snapshot.canary
    return canary_gap(canary, engine.logprobs(canary.token_ids, canary.prompt_lengths))


def test_each_adapter_serves_as_the_learner_meant_it_and_an_old_one_can_come_back(
    engine: VllmEngine, adapters: AdapterPublisher
) -> None:
    snapshots = [adapters.snapshot(version) for version in (1, 2)]
    for snapshot in (*snapshots, snapshots[0]):
        engine.load(snapshot)
        assert proven(engine, snapshot) < 1e-3
        assert proven(engine, next(other for other in snapshots if other is not snapshot)) > 0.05


def test_requests_in_flight_end_with_the_adapter_they_began_with(
    engine: VllmEngine, adapters: AdapterPublisher
) -> None:
    engine.load(adapters.snapshot(3))
    engine.submit(replace(REQUEST, request_id=1, completions=8, temperature=1.5, max_new_tokens=CONTEXT - 6))
    engine.load(adapters.snapshot(4))
    engine.submit(replace(REQUEST, request_id=2))
    finished: list[Finished] = []
    while len(finished) < 2:
        finished += engine.collect(30)
    versions = {one.request_id: {c.policy_version for c in one.completions} for one in finished}
    assert versions == {1: {3}, 2: {4}}
    assert all(completion.spans == () for one in finished for completion in one.completions)


def test_an_adapter_of_another_shape_is_refused(engine: VllmEngine, adapters: AdapterPublisher) -> None:
    before = engine.policy_version
    with pytest.raises(LoadError, match="expected shape"):
        engine.load(adapters.snapshot(5, rank=8))
    assert engine.policy_version == before
