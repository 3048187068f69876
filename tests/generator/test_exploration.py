"""Exploration moves a group's temperature and top-p as the task says, and greedy sampling never."""

from __future__ import annotations

import numpy as np
import pytest

from services.generator.exploration import explore
from tba_common.tasks import Exploration, Sampling

WIDE = Exploration(probability=0.3, temperature_low=0.5, temperature_high=1.5, top_p_low=0.8, top_p_high=1.0)


def test_without_exploration_a_group_is_sampled_as_the_task_says() -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9)
    assert explore(sampling, np.random.default_rng(0)) == (0.7, 0.9)


def test_the_given_share_of_groups_explores_uniformly_within_the_bounds() -> None:
    rng = np.random.default_rng(0)
    sampling = Sampling(temperature=1.0, top_p=1.0, exploration=WIDE)
    points = np.array([explore(sampling, rng) for _ in range(4_000)])
    explored = points[points[:, 0] != 1.0]
    assert len(explored) / len(points) == pytest.approx(0.3, abs=0.03)
    assert (explored.min(axis=0) >= [0.5, 0.8]).all()
    assert (explored.max(axis=0) <= [1.5, 1.0]).all()
    assert explored.mean(axis=0) == pytest.approx([1.0, 0.9], abs=0.03)


def test_the_same_generator_state_draws_the_same_point() -> None:
    sampling = Sampling(exploration=WIDE)
    one, other = ([explore(sampling, rng) for _ in range(20)] for rng in map(np.random.default_rng, (5, 5)))
    assert one == other


def test_greedy_sampling_never_explores() -> None:
    sampling = Sampling(temperature=0.0, exploration=Exploration(probability=1.0))
    assert explore(sampling, np.random.default_rng(0)) == (0.0, 1.0)
