"""Diversity: one minus the mean cosine to the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.reward.diversity import distances, open_diversity
from services.reward.diversity_settings import DiversitySettings
from tba_common.codec import BadMessage
from tests.reward import tiny_models
from tests.reward.rollouts import rollout

pytestmark = pytest.mark.integration


def test_two_alike_and_one_across_have_distances_by_hand() -> None:
    embeddings = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    assert distances(embeddings).tolist() == [0.5, 0.5, 1.0]


@given(st.lists(st.floats(0, 6.28), min_size=2, max_size=9))
def test_the_mean_over_a_group_is_that_over_its_pairs(angles: list[float]) -> None:
    embeddings = np.array([[np.cos(a), np.sin(a)] for a in angles], dtype=np.float32)
    pairs = [1 - np.cos(a - b) for i, a in enumerate(angles) for b in angles[:i]]
    assert distances(embeddings).mean() == pytest.approx(np.mean(pairs), abs=1e-5)


def test_an_embedding_is_the_mean_over_a_text_s_tokens_whatever_stands_beside_it(tmp_path: Path) -> None:
    model, characters = tiny_models.encoder(tmp_path), tiny_models.tokenizer(adds_cls=True)
    texts = ["hello", "a quite different text", "hello you"]
    with torch.no_grad():
        means = [model(torch.tensor([characters(t)["input_ids"]])).last_hidden_state[0].mean(0) for t in texts]
    unit = torch.stack([mean / mean.norm() for mean in means]).numpy()
    with open_diversity("diversity", DiversitySettings(model=str(tmp_path))) as scorer:
        judgement = scorer.score(rollout(*texts), {})
    assert judgement.values == pytest.approx(distances(unit), abs=1e-5)


def test_a_long_text_is_compared_by_its_beginning(tmp_path: Path) -> None:
    tiny_models.encoder(tmp_path)
    with open_diversity("diversity", DiversitySettings(model=str(tmp_path))) as scorer:
        values = scorer.score(rollout("ab" * 40, "ab" * 50), {}).values
    assert values == pytest.approx([0, 0], abs=1e-6)


def test_a_group_of_one_has_no_diversity(tmp_path: Path) -> None:
    tiny_models.encoder(tmp_path)
    with (
        open_diversity("diversity", DiversitySettings(model=str(tmp_path))) as scorer,
        pytest.raises(BadMessage, match="expected a group of 2 completions or more, got 1"),
    ):
        scorer.score(rollout("alone"), {})


def test_a_pooling_that_is_not_done_here_is_refused(tmp_path: Path) -> None:
    tiny_models.encoder(tmp_path)
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with (
        pytest.raises(ValueError, match=r"expected pooling_mode_mean_tokens.*got \['pooling_mode_max_tokens'\]"),
        open_diversity("diversity", DiversitySettings(model=str(tmp_path))),
    ):
        pass


def test_the_encoder_of_the_wheel_tells_paraphrases_from_other_matters() -> None:
    with open_diversity("diversity", DiversitySettings()) as scorer:
        values = scorer.score(
            rollout("A cat sat on the mat.", "A cat was sitting on a mat.", "Profits rose."), {}
        ).values
    assert values[2] > 0.8
    assert max(values[:2]) < 0.7
