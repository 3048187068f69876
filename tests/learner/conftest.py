"""A small policy on disk for all tests, and one in memory for each; only who asks for them imports transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from services.learner.policy import Policy
    from services.learner.update import Updater


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """On tensors of a few hundred numbers two threads wait for each other longer than they compute."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the policy that most tests start from."""
    from tests.learner.small_policy import write_small

    return write_small(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def tied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a policy whose head is its embedding."""
    from tests.learner.small_policy import write_small

    return write_small(tmp_path_factory.mktemp("models") / "tied", tied=True)


@pytest.fixture
def policy(model: Path) -> Policy:
    from tests.learner.small_policy import load_small

    return load_small(model)


@pytest.fixture
def make_updater(model: Path) -> Callable[..., Updater]:
    """An updater of a freshly loaded policy, `make_updater(token_budget=64)`."""
    from services.learner.schedule import LearningRateSchedule
    from services.learner.update import Updater
    from tests.learner.small_policy import load_small

    def make(*, folder: Path = model, **changes: Any) -> Updater:
        options: dict[str, Any] = {
            "learning_rate": 1e-2,
            "schedule": LearningRateSchedule(warmup=0),
            "token_budget": 4096,
        } | changes
        return Updater(load_small(folder), **options)

    return make
