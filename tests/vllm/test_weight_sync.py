"""Weights that are damaged, incomplete or wrong never serve, and vLLM outlives them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.generator.vllm_engine import VllmEngine
from services.generator.weight_sync import RETRY_SECONDS, WeightsRefused
from tests.generator.fakes import FakeBroker, weight_sync
from tests.generator.tiny_policy import REQUEST, Policy, Publisher
from tests.vllm.conftest import POLICY, opened


class Line:
    """A sync of the engine on a real store, with version 1 serving; time stands still until told."""

    def __init__(self, publisher: Publisher, engine: VllmEngine) -> None:
        self.now = 0.0
        self.engine, self.publisher, self.broker = engine, publisher, FakeBroker()
        self.sync = weight_sync(engine, self.broker, publisher.store, lambda: self.now)
        self.announce(1, POLICY)
        self.sync.load(1)

    def announce(self, version: int, policy: Policy, **options: Any) -> None:
        self.broker.announce(self.publisher.publish(version, policy, **options))
        self.sync.poll(0)

    def answers(self) -> bool:
        """Whether the engine still samples, with the version that serves."""
        self.engine.submit(REQUEST)
        (finished,) = self.engine.collect(30)
        return {completion.policy_version for completion in finished.completions} == {self.sync.serving}


@pytest.fixture
def line(shared_engine: VllmEngine, publisher: Publisher) -> Line:
    return Line(publisher, shared_engine)


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def alter(directory: Path) -> None:
    path = directory / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def remove(directory: Path) -> None:
    directory.rename(directory.with_name("elsewhere"))


def empty(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(truncate, "bytes, got"), (alter, "expected sha256"), (remove, "found none"), (empty, "is missing")],
)
def test_a_damaged_version_leaves_the_old_one_serving_and_the_engine_alive(
    line: Line, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], reason: str
) -> None:
    line.announce(2, replace(POLICY, seed=2))
    damage(line.publisher.store.find(2).directory)
    with caplog.at_level(logging.ERROR):
        line.sync.load(2)
    (refused,) = [record for record in caplog.records if record.getMessage() == "weights refused"]
    assert reason in vars(refused)["reason"]
    assert vars(refused)["serving"] == line.sync.serving == 1
    assert reason in line.sync.trouble
    assert line.answers()


def test_weights_that_are_not_what_the_learner_meant_are_put_back(line: Line) -> None:
    line.announce(2, replace(POLICY, seed=2), change=lambda model: model.model.norm.weight.mul_(1.5))
    line.sync.load(2)
    assert "canary gap expected at most 0.05" in line.sync.trouble
    assert line.answers()
    line.announce(3, replace(POLICY, seed=3))
    line.sync.load(3)
    assert line.sync.serving == 3
    assert line.answers()


@pytest.fixture
def unrepaired(tmp_path: Path) -> Iterator[VllmEngine]:
    engine = opened(tmp_path / "start", loader="tests.vllm.no_repair.Unrepaired")
    yield engine
    engine.close()


def test_without_the_repair_of_the_tied_head_the_canary_refuses_every_new_version(
    unrepaired: VllmEngine, publisher: Publisher
) -> None:
    line = Line(publisher, unrepaired)

    line.announce(2, replace(POLICY, seed=2))
    line.sync.load(2)
    assert line.sync.serving == 1
    assert "canary gap" in line.sync.trouble
    assert line.answers()
    line.now += RETRY_SECONDS
    with pytest.raises(WeightsRefused, match="version 2 failed twice"):
        line.sync.load(2)
