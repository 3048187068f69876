"""The reference: the sum of log-probabilities that transformers gives, one row at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from services.reward.reference import Reference, open_reference
from services.reward.reference_settings import ReferenceSettings
from tba_common.codec import BadMessage
from tba_common.messages import Completion, Rollout
from tba_common.tasks import Sampling
from tests.reward import tiny_models
from tests.reward.rollouts import prompt, rollout

pytestmark = pytest.mark.integration

PROMPT = [4, 5, 6]
ANSWERS = [[7, 8, 1], [9], [3, 3, 3, 3, 3, 1], [0, 1]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("models") / "reference"
    return tiny_models.language_model(folder), folder


@pytest.fixture
def reference(model: tuple[Any, Path]) -> Iterator[Reference]:
    with open_reference("reference", ReferenceSettings(model=str(model[1]))) as reference:
        yield reference


def sampled(*answers: list[int], temperature: float = 1.0, prompt_token_ids: list[int] = PROMPT) -> Rollout:
    completions = tuple(
        Completion.model_validate(
            {
                "token_ids": ids,
                "logprobs": [-1.0] * len(ids),
                "text": "",
                "finish_reason": "eos",
                "policy_version": 1,
            }
        )
        for ids in answers
    )
    order = prompt(sampling=Sampling(temperature=temperature))
    return rollout(of=order, completions=completions, prompt_token_ids=prompt_token_ids)


@torch.no_grad()
def alone(model: Any, answer: list[int], temperature: float) -> float:
    logits = model(torch.tensor([[*PROMPT, *answer]])).logits[0].double() / temperature
    logprobs = logits.log_softmax(-1)
    return float(sum(logprobs[len(PROMPT) + i - 1, token] for i, token in enumerate(answer)))


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_each_sum_is_that_of_transformers_alone(
    model: tuple[Any, Path], reference: Reference, temperature: float
) -> None:
    judgement = reference.score(sampled(*ANSWERS, temperature=temperature), {})
    expected = [alone(model[0], answer, temperature) for answer in ANSWERS]
    assert judgement.values == pytest.approx(expected, abs=2e-5)


def test_greedy_samples_are_compared_at_temperature_one(model: tuple[Any, Path], reference: Reference) -> None:
    judgement = reference.score(sampled([7, 8], temperature=0.0), {})
    assert judgement.values == pytest.approx([alone(model[0], [7, 8], 1.0)], abs=2e-5)


@pytest.mark.parametrize(
    ("answer", "prompt_token_ids", "message"),
    [
        ([], PROMPT, "completion 2 of 2: expected token ids of prompt and completion.*got 3 and 0; given texts"),
        ([7], [], "completion 1 of 2: expected token ids of prompt and completion.*got 0 and 1"),
        ([999], PROMPT, "completion 2 of 2: expected token ids below 43; is the reference of another tokenizer"),
        ([7] * 64, PROMPT, "prompt with completion 2 of 2: expected 1 to 64 tokens, what the model reads, got 67"),
    ],
)
def test_what_has_no_log_probability_says_why(
    reference: Reference, answer: list[int], prompt_token_ids: list[int], message: str
) -> None:
    with pytest.raises(BadMessage, match=message):
        reference.score(sampled([7], answer, prompt_token_ids=prompt_token_ids), {})


def test_the_version_names_the_reference(tmp_path: Path, reference: Reference) -> None:
    tiny_models.language_model(tmp_path, seed=9)
    with open_reference("reference", ReferenceSettings(model=str(tmp_path))) as other:
        assert other.version != reference.version
