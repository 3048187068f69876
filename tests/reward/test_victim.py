"""The victim: the same order gets the same answers, whatever is answered beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from services.reward.frozen_model import load_frozen
from services.reward.victim import Victim, open_victim
from services.reward.victim_sampling import Question, VictimSampler
from services.reward.victim_settings import VictimSettings
from tba_common.codec import BadMessage
from tests.reward import tiny_models
from tests.reward.rollouts import prompt, rollout

pytestmark = pytest.mark.integration

OPTIONS: dict[str, Any] = {"samples": 3, "max_new_tokens": 6, "template": "text", "temperature": 1.0, "top_p": 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("models") / "victim"
    return tiny_models.language_model(folder), folder


@pytest.fixture
def victim(model: tuple[Any, Path]) -> Iterator[Victim]:
    with open_victim("victim", VictimSettings(model=str(model[1]))) as victim:
        yield victim


@pytest.fixture(scope="module")
def sampler(model: tuple[Any, Path]) -> VictimSampler:
    from transformers import AutoModelForCausalLM

    return VictimSampler(load_frozen(AutoModelForCausalLM, VictimSettings(model=str(model[1]))))


def question(*token_ids: int, seed: int = 0, **changes: Any) -> Question:
    fields: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 5}
    return Question(token_ids, seed=(seed,), **(fields | changes))


def test_every_completion_has_its_answers_and_their_mean_length(victim: Victim) -> None:
    judgement = victim.score(rollout("hello", "go"), OPTIONS)
    assert [len(answers) for answers in judgement.responses] == [3, 3]
    assert judgement.values.shape == (2,)
    assert all(1 <= value <= 6 for value in judgement.values)


def test_an_answer_depends_on_its_order_and_not_on_its_company(victim: Victim) -> None:
    together = victim.score(rollout("hello", "a much longer attack"), OPTIONS)
    again = victim.score(rollout("hello"), OPTIONS)
    another = victim.score(rollout("hello", of=prompt(issue_id=8)), OPTIONS)
    assert again.responses[0] == together.responses[0]
    assert another.responses[0] != again.responses[0]


def test_greedy_answers_are_those_of_transformers(model: tuple[Any, Path], sampler: VictimSampler) -> None:
    prompts = [(5, 6, 7, 8, 9), (4,), (3, 3)]
    questions = [question(*ids, temperature=0.0, max_new_tokens=4 + i) for i, ids in enumerate(prompts)]
    for ids, asked, answer in zip(prompts, questions, sampler(questions), strict=True):
        output = model[0].generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=asked.max_new_tokens,
        )[0, len(ids) :]
        assert answer.tokens == len(output)
        assert answer.text == tiny_models.tokenizer().decode(output, skip_special_tokens=True)


def test_first_tokens_have_the_model_s_probabilities(model: tuple[Any, Path], sampler: VictimSampler) -> None:
    draws = 4_000
    with torch.no_grad():
        logits = model[0](torch.tensor([[5, 6]])).logits[0, -1]
    expected = (logits / 0.8).softmax(-1)
    asked = [question(5, 6, seed=i, temperature=0.8, max_new_tokens=1) for i in range(draws)]
    counts = Counter(answer.text for answer in sampler(asked))
    for token in expected.topk(5).indices.tolist():
        p = float(expected[token])
        text = tiny_models.tokenizer().decode([token], skip_special_tokens=True)
        assert counts[text] / draws == pytest.approx(p, abs=5 * (p * (1 - p) / draws) ** 0.5)


def test_top_p_keeps_the_fewest_tokens_that_reach_it(model: tuple[Any, Path], sampler: VictimSampler) -> None:
    with torch.no_grad():
        probabilities = model[0](torch.tensor([[5, 6]])).logits[0, -1].softmax(-1).sort(descending=True)
    kept = int((probabilities.values.cumsum(0) < 0.5).sum()) + 1
    allowed = {
        tiny_models.tokenizer().decode([token], skip_special_tokens=True) for token in probabilities.indices[:kept]
    }
    asked = [question(5, 6, seed=i, top_p=0.5, max_new_tokens=1) for i in range(300)]
    assert {answer.text for answer in sampler(asked)} == allowed


def test_the_template_stands_around_the_attack(model: tuple[Any, Path], victim: Victim) -> None:
    framed = VictimSettings(model=str(model[1]), text_template="ask: {text} a:")
    with open_victim("victim", framed) as other:
        bare = victim.score(rollout("ask: hi a:"), OPTIONS).responses
        assert other.score(rollout("hi"), OPTIONS).responses == bare
    assert victim.score(rollout("hi"), OPTIONS | {"template": "chat"}).responses != bare


def test_an_attack_that_leaves_no_room_for_an_answer_is_refused(victim: Victim) -> None:
    with pytest.raises(BadMessage, match="attack 2: expected 1 to 64 tokens, what the model reads, got 66"):
        victim.score(rollout("hi", "a" * 60), OPTIONS)
