"""A reward model learns from pairs, and scores as well as it was measured."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from services.reward.reward_model import open_reward_model
from services.reward.reward_model_settings import RewardModelSettings
from services.reward.reward_model_training import Recipe, train
from tests.reward import tiny_models
from tests.reward.rollouts import prompt, rollout

pytestmark = pytest.mark.integration

RECIPE = Recipe(epochs=6, batch=16, learning_rate=3e-3)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In every pair the answer with the letter z is the better one."""
    path, rng = tmp_path_factory.mktemp("pairs") / "pairs.jsonl", random.Random(0)
    rows = []
    for i in range(200):
        word = "".join(rng.choices("abcdef", k=4))
        place = rng.randrange(4)
        better = word[:place] + "z" + word[place:]
        rows.append({"prompt": f"{i}=", "chosen": better, "rejected": word})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_make_a_scorer_that_prefers_as_they_do(tmp_path: Path, pairs: Path) -> None:
    tiny_models.language_model(tmp_path / "base")
    out = tmp_path / "reward"
    outcome = train(data=pairs, model=str(tmp_path / "base"), out=out, recipe=RECIPE)
    assert (outcome.pairs, outcome.held_out_pairs) == (180, 20)
    assert outcome.accuracy >= 0.9
    assert json.loads((out / "outcome.json").read_text())["accuracy"] == outcome.accuracy
    assert not [path for path in out.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]
    with open_reward_model("reward_model", RewardModelSettings(model=str(out))) as scorer:
        better, worse = scorer.score(rollout("abzcd", "abcd", of=prompt(reference=None, text="7=")), {}).values
    assert better > worse


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 6}, r"pairs.jsonl:\d+: chosen: expected at most 6 tokens with prompt, got \d"),
        ({"held_out": 0.0}, "expected pairs to train on and pairs to hold out, got 200 and 0"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_first(
    tmp_path: Path, pairs: Path, changes: dict[str, Any], message: str
) -> None:
    tiny_models.language_model(tmp_path)
    with pytest.raises(ValueError, match=message):
        train(data=pairs, model=str(tmp_path), out=tmp_path / "out", recipe=Recipe(**changes))
    assert not (tmp_path / "out").exists()
