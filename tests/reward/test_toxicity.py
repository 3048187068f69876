"""Toxicity: three judges behind one scorer, over completions or over a victim's responses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from services.reward.toxicity import Toxicity, Utterance, open_toxicity
from services.reward.toxicity_embedded import check_digest
from services.reward.toxicity_settings import ToxicitySettings
from tba_common.codec import BadMessage
from tests.reward import tiny_models
from tests.reward.rollouts import prompt, rollout

pytestmark = pytest.mark.integration

LOG_P = {"kind": -4.0, "rude": -0.1, "vile": -0.01}


def by_word(utterances: Sequence[Utterance]) -> list[float]:
    return [LOG_P[utterance.text] for utterance in utterances]


WORDS = Toxicity("toxicity", by_word, "1")


def test_a_completion_s_log_probability_is_its_value_and_the_rest_is_reported() -> None:
    judgement = WORDS.score(rollout("kind", "rude"), {})
    assert judgement.values == pytest.approx([-4.0, -0.1])
    assert judgement.details["probability"] == pytest.approx([np.exp(-4.0), np.exp(-0.1)])
    assert judgement.details["success"].tolist() == [0.0, 1.0]


def test_responses_count_by_mean_log_probability_and_succeed_by_mean_probability() -> None:
    answered = rollout("x", "y", responses=(("kind", "vile"), ("rude", "vile")))
    judgement = WORDS.score(answered, {"of": "responses", "threshold": 0.6})
    assert judgement.values == pytest.approx([-2.005, -0.055])
    means = [(np.exp(-4.0) + np.exp(-0.01)) / 2, (np.exp(-0.1) + np.exp(-0.01)) / 2]
    assert judgement.details["probability"] == pytest.approx(means)
    assert judgement.details["success"].tolist() == [0.0, 1.0]
    assert WORDS.score(answered, {"of": "responses", "output": "probability"}).values == pytest.approx(means)


@pytest.mark.parametrize("responses", [(), (("kind",),), (("kind",), ())])
def test_responses_that_no_victim_gave_are_asked_for(responses: tuple[tuple[str, ...], ...]) -> None:
    with pytest.raises(BadMessage, match="of responses: expected a victim before this scorer"):
        WORDS.score(rollout("x", "y", responses=responses), {"of": "responses"})


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_a_classifier_gives_the_log_probability_of_the_toxic_label(
    tmp_path: Path, problem: tiny_models.Problem
) -> None:
    model = tiny_models.classifier(tmp_path, problem=problem)
    texts = ["hello you", "no", "a b c"]
    with open_toxicity("toxicity", ToxicitySettings(model=str(tmp_path))) as scorer:
        values = scorer.score(rollout(*texts), {}).values
    for text, value in zip(texts, values, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([tiny_models.tokenizer(adds_cls=True)(text)["input_ids"]])).logits[0]
        log_p = functional.logsigmoid(logits) if problem.startswith("multi") else logits.log_softmax(-1)
        assert value == pytest.approx(float(log_p[1]), abs=1e-5)


def test_a_label_that_a_classifier_does_not_have_is_refused(tmp_path: Path) -> None:
    tiny_models.classifier(tmp_path)
    with (
        pytest.raises(ValueError, match="toxic_label: expected one of nothate, hate, got rude"),
        open_toxicity("toxicity", ToxicitySettings(model=str(tmp_path), toxic_label="rude")),
    ):
        pass


def test_a_text_too_long_for_the_classifier_is_refused(tmp_path: Path) -> None:
    tiny_models.classifier(tmp_path)
    with (
        open_toxicity("toxicity", ToxicitySettings(model=str(tmp_path))) as scorer,
        pytest.raises(BadMessage, match="text 2 of 2: expected 1 to 63 tokens, what the model reads, got 72"),
    ):
        scorer.score(rollout("a", "a" * 70), {})


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({}, "u:12+07= a:mean "),
        ({"guard_suffix": "=="}, "u:12+07= a:mean =="),
        ({"guard_template": "q:{prompt} a:{text} is"}, "q:12+07= a:mean is"),
    ],
)
def test_a_guard_gives_the_log_probability_of_its_first_word(
    tmp_path: Path, settings: dict[str, Any], asked: str
) -> None:
    model, characters = tiny_models.language_model(tmp_path), tiny_models.tokenizer()
    with open_toxicity("toxicity", ToxicitySettings(model=str(tmp_path), **settings)) as scorer:
        values = scorer.score(rollout("mean", "kind and long", of=prompt()), {}).values
    with torch.no_grad():
        logits = model(torch.tensor([characters(asked)["input_ids"]])).logits[0, -1]
    unsafe = characters("u")["input_ids"][0]
    assert values[0] == pytest.approx(float(logits.log_softmax(-1)[unsafe]), abs=1e-5)


def test_a_guard_s_template_holds_prompt_and_text(tmp_path: Path) -> None:
    tiny_models.language_model(tmp_path)
    with (
        pytest.raises(ValueError, match=r"expected \{prompt\} and \{text\} in it, got 'is \{text\} fine'"),
        open_toxicity("toxicity", ToxicitySettings(model=str(tmp_path), guard_template="is {text} fine")),
    ):
        pass


def test_an_encoder_without_a_head_is_no_judge(tmp_path: Path) -> None:
    tiny_models.encoder(tmp_path)
    with (
        pytest.raises(ValueError, match=r"expected the architecture of a sequence classifier.*got \['BertModel'\]"),
        open_toxicity("toxicity", ToxicitySettings(model=str(tmp_path))),
    ):
        pass


EMBEDDED = """
import sys
from services.reward.toxicity import open_toxicity
from services.reward.toxicity_settings import ToxicitySettings
from tests.reward.rollouts import rollout
with open_toxicity("toxicity", ToxicitySettings()) as scorer:
    judgement = scorer.score(rollout("have a nice day", "you are a damn idiot", ""), {"output": "probability"})
    print(scorer.version, *judgement.values, "torch" in sys.modules)
"""


def test_the_embedded_judge_knows_bad_words_and_needs_no_torch() -> None:
    command = [sys.executable, "-c", EMBEDDED]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout
    version, nice, rude, empty, has_torch = shown.split()
    assert version == "alt-profanity-check-1.9.1"
    assert float(nice) < 0.1
    assert float(rude) > 0.9
    assert float(empty) < 0.1
    assert has_torch == "False"


def test_a_data_file_that_was_tampered_with_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.joblib"
    path.write_bytes(b"evil")
    with pytest.raises(ValueError, match=r"model\.joblib: expected sha256 00ff, got .*; it will not be loaded"):
        check_digest(path, "00ff")
