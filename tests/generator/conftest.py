"""A store to publish tiny policies in, and an engine that has loaded one; only who asks for them imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from services.generator.hf_engine import HfEngine
    from tests.generator.tiny_policy import Publisher


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    from tests.generator.tiny_policy import Publisher

    return Publisher(tmp_path / "weights")


@pytest.fixture
def engine(publisher: Publisher) -> HfEngine:
    """An engine with version 0 of the default policy."""
    from services.generator.hf_engine import HfEngine
    from tests.generator.tiny_policy import Policy

    engine = HfEngine(device="cpu", max_batch_completions=512, seed=7)
    engine.load(publisher.snapshot(0, Policy()))
    return engine
