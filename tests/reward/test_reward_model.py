"""The reward model: what a batch says is what the model says of each text alone, and nothing is cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.reward.reward_model import open_reward_model
from services.reward.reward_model_settings import RewardModelSettings
from tba_common.codec import BadMessage
from tests.reward import tiny_models
from tests.reward.rollouts import prompt, rollout
from tests.reward.tiny_models import EOS

pytestmark = pytest.mark.integration

TEXTS = ("19", "20 is it", "no", "2", "")
ORDER = prompt(reference=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "reward"
    tiny_models.reward_model(folder)
    return folder


@torch.no_grad()
def alone(model: Any, ids: Sequence[int]) -> float:
    """What the model as it was saved says of one row without padding."""
    return float(model(input_ids=torch.tensor([ids])).logits[0, 0])


@pytest.mark.parametrize("padding", ["own", "eos", "none"])
@pytest.mark.parametrize("batch_tokens", [8_192, 24])
def test_a_score_does_not_depend_on_padding_or_company(
    tmp_path: Path, padding: Literal["own", "eos", "none"], batch_tokens: int
) -> None:
    model = tiny_models.reward_model(tmp_path, padding)
    characters = tiny_models.tokenizer()
    expected = [alone(model, [*characters(ORDER.text + text)["input_ids"], EOS]) for text in TEXTS]
    with open_reward_model("reward_model", RewardModelSettings(model=str(tmp_path), batch_tokens=batch_tokens)) as it:
        judgement = it.score(rollout(*TEXTS, of=ORDER), {})
    assert judgement.values == pytest.approx(expected, abs=1e-5)
    assert judgement.values.std() > 0.1


def test_a_real_eos_is_read_where_no_padding_is_named(tmp_path: Path) -> None:
    tiny_models.reward_model(tmp_path, "none")
    values = []
    for ends_with_eos in (True, False):
        settings = RewardModelSettings(model=str(tmp_path), ends_with_eos=ends_with_eos)
        with open_reward_model("reward_model", settings) as it:
            values.append(it.score(rollout("19", "3", of=ORDER), {}).values[0])
    assert abs(values[0] - values[1]) > 0.01


def test_margin_and_win_compare_with_the_reference_and_normalisation_is_undone_in_the_details(folder: Path) -> None:
    order = prompt(reference="20 is it")
    with open_reward_model("reward_model.gold", RewardModelSettings(model=str(folder))) as it:
        raw = it.score(rollout(*TEXTS, of=order), {}).values
        judged = it.score(rollout(*TEXTS, of=order), {"output": "margin", "mean": 3.0, "deviation": 2.0})
        won = it.score(rollout(*TEXTS, of=order), {"output": "win"})
        assert it.name == "reward_model.gold"
    assert judged.values == pytest.approx((raw - raw[1]) / 2, abs=1e-5)
    assert judged.details["score"] == pytest.approx(raw, abs=1e-5)
    assert set(judged.details) == {"score", "margin", "win"}
    assert won.values.tolist() == [float(r > raw[1]) if i != 1 else 0.5 for i, r in enumerate(raw)]


def test_the_score_is_normalised(folder: Path) -> None:
    with open_reward_model("reward_model", RewardModelSettings(model=str(folder))) as it:
        raw = it.score(rollout("19", "7", of=ORDER), {}).values
        judged = it.score(rollout("19", "7", of=ORDER), {"mean": 1.5, "deviation": 4.0})
    assert judged.values == pytest.approx((raw - 1.5) / 4, abs=1e-5)


def test_chat_reads_the_turns_of_the_template(tmp_path: Path) -> None:
    model = tiny_models.reward_model(tmp_path)
    ids = tiny_models.tokenizer()("s:be a u:12+07= a:19 ")["input_ids"]
    order = prompt(reference=None, prompt_format="chat", system="be a")
    with open_reward_model("reward_model", RewardModelSettings(model=str(tmp_path), text_format="chat")) as it:
        assert it.score(rollout("19", of=order), {}).values == pytest.approx([alone(model, ids)], abs=1e-5)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["7", "1" * 64], {}, "prompt with answer 2 of 2: expected 1 to 64 tokens, what the model reads, got 71"),
        (["7"], {"output": "win"}, "output win: expected a prompt with a reference, got none"),
        (["7"], {"scale": 2}, "options: scale"),
    ],
)
def test_what_cannot_be_scored_says_why(folder: Path, texts: list[str], options: dict[str, Any], message: str) -> None:
    with (
        open_reward_model("reward_model", RewardModelSettings(model=str(folder))) as it,
        pytest.raises(BadMessage, match=message),
    ):
        it.score(rollout(*texts, of=ORDER), options)


def test_the_version_names_the_weights_and_how_they_are_read(tmp_path: Path) -> None:
    tiny_models.reward_model(tmp_path)

    def version(**settings: Any) -> str:
        with open_reward_model("reward_model", RewardModelSettings(model=str(tmp_path), **settings)) as it:
            return it.version

    before = version()
    assert before == version()
    others = {version(ends_with_eos=False), version(text_format="chat"), version(dtype="bfloat16")}
    weights = load_file(tmp_path / "model.safetensors")
    weights["score.weight"] += 1e-3
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert len(others | {before, version()}) == 5


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    tiny_models.language_model(tmp_path)
    with (
        pytest.raises(
            ValueError, match=r"expected the weights of a LlamaForSequenceClassification, got none for score"
        ),
        open_reward_model("reward_model", RewardModelSettings(model=str(tmp_path))),
    ):
        pass


def test_several_outputs_are_no_reward(tmp_path: Path) -> None:
    tiny_models.reward_model(tmp_path, outputs=2)
    with (
        pytest.raises(ValueError, match="expected a head with one output, got 2"),
        open_reward_model("reward_model", RewardModelSettings(model=str(tmp_path))),
    ):
        pass


def test_weights_in_a_pickle_are_not_read(tmp_path: Path) -> None:
    model = tiny_models.reward_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with (
        pytest.raises(OSError, match=r"model\.safetensors"),
        open_reward_model("reward_model", RewardModelSettings(model=str(tmp_path))),
    ):
        pass


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_model_of_the_hub_is_pinned_to_a_commit(revision: str | None) -> None:
    with pytest.raises(ValueError, match="TBA_MODEL_REVISION expected a commit of 40 hex digits"):
        RewardModelSettings(model="someone/model", model_revision=revision)
    RewardModelSettings(model="someone/model", model_revision="0123456789abcdef" * 2 + "01234567")
