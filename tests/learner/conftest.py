"""A small policy on disk for all tests, and one in memory for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from services.learner.policy import Policy
from services.learner.schedule import LearningRateSchedule
from services.learner.update import Updater
from tests.learner.small_policy import load_small, write_small


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """On tensors of a few hundred numbers two threads wait for each other longer than they compute."""
    torch.set_num_threads(1)


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
    return load_small(model)


@pytest.fixture
def make_updater(model: Path) -> Callable[..., Updater]:
    """An updater of a freshly loaded policy, `make_updater(token_budget=64)`."""

    def make(*, folder: Path = model, **changes: Any) -> Updater:
        options: dict[str, Any] = {
            "learning_rate": 1e-2,
            "schedule": LearningRateSchedule(warmup=0),
            "token_budget": 4096,
        } | changes
        return Updater(load_small(folder), **options)

    return make
