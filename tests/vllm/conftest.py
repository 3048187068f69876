"""Engines on the real vLLM: started once, because a start takes twenty seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.generator.vllm_engine import VllmEngine
from tests.generator.tiny_policy import Policy, Publisher

#: Tied, because that is what a reload forgets on a CPU; 32 is the narrowest head that vLLM knows there.
POLICY = Policy(tied=True, width=64)


def opened(directory: Path, *, loader: str = "services.generator.vllm_worker.VersionLoader") -> VllmEngine:
    """An engine with version 0 loaded, for at most eight completions at once."""
    engine = VllmEngine(max_batch_completions=8, cache_bytes=2**26, worker_extension=loader)
    engine.load(Publisher(directory).snapshot(0, POLICY))
    return engine


@pytest.fixture(scope="session")
def shared_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    engine = opened(tmp_path_factory.mktemp("start"))
    yield engine
    engine.close()


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "weights")
