"""The transformers engine where it works: behind the worker, and behind the sync that proves its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from services.generator.hf_engine import HfEngine
from services.generator.weight_sync import canary_gap
from tba_common.messages import Weights
from tests.generator.fakes import FakeBroker, weight_sync
from tests.generator.test_worker import Line, prompt
from tests.generator.tiny_policy import CUTS, SEQUENCES, Policy, Publisher

pytestmark = pytest.mark.integration


class Seeded:
    """Versions of the tiny policy, each of another seed."""

    def __init__(self, publisher: Publisher) -> None:
        self.store = publisher.store
        self._publisher = publisher

    def publish(self, version: int) -> Weights:
        return self._publisher.publish(version, Policy(seed=version))


@pytest.fixture
def line(publisher: Publisher) -> Line:
    """A worker that serves version 1."""
    line = Line(Seeded(publisher), HfEngine(device="cpu", seed=0), max_completions=64)
    line.announce(1)
    line.worker.step()
    return line


def test_a_mixed_batch_is_answered_end_to_end(line: Line) -> None:
    for issue_id in range(5):
        line.broker.post(prompt(issue_id, completions=4))
        line.broker.post(prompt(issue_id + 10, completions=1, version=1))
    line.broker.post(prompt(99, text="1" * 100))
    line.worker.step()
    assert sorted(line.answered()) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert {c.policy_version for r in line.broker.rollouts for c in r.completions} == {1}
    evaluated = [r for r in line.broker.rollouts if r.prompt.purpose == "eval"]
    assert len({tuple(r.completions[0].token_ids) for r in evaluated}) == 1
    assert [letter.issue_id for letter in line.broker.dead] == [99]
    assert sorted(line.broker.done) == list(range(11))


def test_a_given_answer_is_tokenized_up_to_one_eos_and_has_log_probabilities_of_zero(line: Line) -> None:
    line.broker.post(prompt(given=("3", "12+4")))
    line.worker.step()
    (rollout,) = line.broker.rollouts
    assert [completion.text for completion in rollout.completions] == ["3", "12+4"]
    for completion in rollout.completions:
        assert completion.token_ids.tolist().count(completion.token_ids[-1]) == 1
        assert len(completion.token_ids) > 1
        assert not completion.logprobs.any()
        assert (completion.finish_reason, completion.policy_version) == ("eos", 1)


def test_given_answers_that_do_not_fit_the_model_go_to_the_dead_letters(line: Line) -> None:
    line.broker.post(prompt(given=("1" * 10_000,)))
    line.worker.step()
    assert "the model's context" in line.broker.dead[0].reason


@pytest.mark.parametrize("tied", [False, True])
def test_the_canary_finds_one_altered_matrix_that_every_digest_agrees_with(publisher: Publisher, tied: bool) -> None:
    def damage(model: Any) -> None:
        model.lm_head.weight += 0.3 * torch.randn_like(model.lm_head.weight)

    engine, broker = HfEngine(device="cpu"), FakeBroker()
    sync = weight_sync(engine, broker, publisher.store, lambda: 0.0)
    broker.announce(publisher.publish(1, Policy(tied=tied)))
    sync.poll(0)
    sync.load(1)
    before = engine.logprobs(SEQUENCES, CUTS)
    broker.announce(publisher.publish(2, Policy(tied=tied), change=damage))
    sync.poll(0)
    sync.load(2)
    assert "canary gap" in sync.trouble
    assert engine.policy_version == 1
    assert engine.logprobs(SEQUENCES, CUTS) == before


def test_a_canary_of_another_policy_is_told_from_rounding(publisher: Publisher) -> None:
    engine = HfEngine(device="cpu", dtype="bfloat16")
    engine.load(publisher.snapshot(1, Policy(seed=1)))
    own, other = publisher.store.find(1).canary, publisher.snapshot(2, Policy(seed=2)).canary
    ours = engine.logprobs(SEQUENCES, CUTS)
    assert canary_gap(own, ours) < 0.05 < canary_gap(other, ours)
