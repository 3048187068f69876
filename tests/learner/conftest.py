"""A small policy on disk for all tests, and one in memory for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.learner.policy import Policy
from services.learner.schedule import LearningRateSchedule
from services.learner.update import Updater
from tests.learner.small_policy import write_small


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the policy that most tests start from."""
    return write_small(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def tied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a policy whose head is its embedding."""
    return write_small(tmp_path_factory.mktemp("models") / "tied", tied=True)


@pytest.fixture
def policy(model: Path) -> Policy:
    return Policy.load(str(model), device="cpu")


@pytest.fixture
def make_updater(model: Path) -> Callable[..., Updater]:
    """An updater of a freshly loaded policy, `make_updater(token_budget=64)`."""

    def make(*, folder: Path = model, **changes: Any) -> Updater:
        options: dict[str, Any] = {
            "learning_rate": 1e-2,
            "schedule": LearningRateSchedule(warmup=0),
            "token_budget": 4096,
        } | changes
        return Updater(Policy.load(str(folder), device="cpu"), **options)

    return make
