"""What the vLLM engine samples, and what a swap of weights under requests in flight changes."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from services.generator.engine import Finished, LoadError, UnusablePrompt
from services.generator.hf_engine import HfEngine
from services.generator.vllm_engine import VllmEngine
from services.learner.collate import pad_rows
from services.learner.policy import sequence_logprob
from tests.generator.tiny_policy import CONTEXT, EOS, REQUEST, Publisher
from tests.vllm.conftest import POLICY

LONG = replace(REQUEST, completions=4, temperature=1.5, max_new_tokens=CONTEXT - 6)
GREEDY = replace(REQUEST, completions=1, temperature=0.0, max_new_tokens=24)
MANY = 60  # thirty times what runs at once: seconds of work, even if nobody looks after it
TEXTS = ("12+34=", "7=", "abcdef", "9+9+9=")


@pytest.fixture
def engine(shared_engine: VllmEngine, publisher: Publisher) -> VllmEngine:
    """The shared engine, back on version 0."""
    shared_engine.load(publisher.snapshot(0, POLICY))
    return shared_engine


def answers(engine: VllmEngine | HfEngine, count: int) -> list[Finished]:
    """Collect until so many requests have finished."""
    finished: list[Finished] = []
    deadline = time.monotonic() + 120
    while len(finished) < count:
        assert time.monotonic() < deadline, f"{len(finished)} of {count} requests finished"
        finished += engine.collect(30)
    return sorted(finished, key=lambda one: one.request_id)


def greedy(engine: VllmEngine, first_id: int) -> list[list[int]]:
    for i, text in enumerate(TEXTS):
        engine.submit(replace(GREEDY, request_id=first_id + i, text=text))
    return [finished.completions[0].token_ids.tolist() for finished in answers(engine, len(TEXTS))]


def test_completions_of_one_prompt_are_drawn_apart_and_end_with_eos_once(engine: VllmEngine) -> None:
    engine.submit(replace(LONG, completions=8))
    (finished,) = answers(engine, 1)
    sampled = [tuple(completion.token_ids.tolist()) for completion in finished.completions]
    assert len({tokens[:3] for tokens in sampled}) > 1, sampled  # by chance once in 10^9
    long = [tokens for tokens in sampled if len(tokens) > 12]  # short ones, such as EOS at once, may well repeat
    assert len(set(long)) == len(long), sampled
    for completion in finished.completions:
        ends = completion.token_ids.tolist().count(EOS)
        assert ends == (completion.finish_reason == "eos")
        assert len(completion.token_ids) == len(completion.logprobs)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.6)])
def test_behaviour_logprobs_are_those_of_the_distribution_sampled_from(
    engine: VllmEngine, temperature: float, top_p: float
) -> None:
    engine.submit(replace(REQUEST, completions=8, temperature=temperature, top_p=top_p))
    (finished,) = answers(engine, 1)
    model = POLICY.model()
    for completion in finished.completions:
        sequence = [*finished.prompt_token_ids, *completion.token_ids.tolist()]
        with torch.no_grad():
            logits = model(torch.tensor([sequence])).logits[0].double() / temperature
        for position, got in enumerate(completion.logprobs.tolist(), start=len(finished.prompt_token_ids)):
            probabilities = logits[position - 1].softmax(-1).sort(descending=True)
            before = probabilities.values.cumsum(-1) - probabilities.values
            mass = probabilities.values[before < top_p].sum()
            expected = (logits[position - 1].softmax(-1)[sequence[position]] / mass).log()
            assert got == pytest.approx(float(expected), abs=1e-3)


def test_a_greedy_completion_records_logprobs_at_temperature_one(engine: VllmEngine) -> None:
    engine.submit(GREEDY)
    (finished,) = answers(engine, 1)
    sequence = [*finished.prompt_token_ids, *finished.completions[0].token_ids.tolist()]
    (sum_,) = engine.logprobs([sequence], [len(finished.prompt_token_ids)])
    assert float(finished.completions[0].logprobs.sum()) == pytest.approx(sum_, abs=1e-2)


def test_two_engines_agree_with_the_learner_to_a_fiftieth_of_a_nat(engine: VllmEngine, publisher: Publisher) -> None:
    transformers = HfEngine(device="cpu", seed=0)
    transformers.load(publisher.snapshot(1, POLICY))
    for sampled in (engine, transformers):
        sampled.submit(replace(REQUEST, completions=8, max_new_tokens=32))
        (finished,) = answers(sampled, 1)
        completions = [completion.token_ids.tolist() for completion in finished.completions]
        rows = pad_rows(
            [(finished.prompt_token_ids, tokens) for tokens in completions],
            temperature=[1.0] * len(completions),
            pad_token_id=0,
            device=torch.device("cpu"),
        )
        with torch.no_grad():
            learner = sequence_logprob(POLICY.model(), rows).numpy()
        ours = np.array([completion.logprobs.sum() for completion in finished.completions])
        gaps = np.abs(ours - learner) / [len(tokens) for tokens in completions]
        assert gaps.mean() < 0.02


def test_two_swaps_under_requests_in_flight_lose_nothing_and_every_token_has_its_version(
    engine: VllmEngine, publisher: Publisher
) -> None:
    snapshots = [publisher.snapshot(version, replace(POLICY, seed=version)) for version in (1, 2)]
    finished: list[Finished] = []
    for snapshot in snapshots:
        for request_id in range(MANY):
            engine.submit(replace(LONG, request_id=100 * snapshot.version + request_id))
        finished += answers(engine, 1)
        engine.load(snapshot)
    finished += answers(engine, 2 * MANY - len(finished))
    assert sorted(one.request_id for one in finished) == [*range(100, 100 + MANY), *range(200, 200 + MANY)]
    completions = [completion for one in finished for completion in one.completions]
    assert len(completions) == 2 * MANY * LONG.completions
    swapped = [completion for completion in completions if completion.spans]
    assert {version for completion in swapped for version, _ in completion.spans} == {0, 1, 2}
    for completion in swapped:
        versions = [version for version, _ in completion.spans]
        assert versions == sorted(set(versions))
        assert completion.policy_version == versions[0]
        assert sum(tokens for _, tokens in completion.spans) == len(completion.token_ids)


def test_greedy_output_after_swaps_is_that_of_a_fresh_engine(engine: VllmEngine, publisher: Publisher) -> None:
    before = greedy(engine, 0)
    newest = publisher.snapshot(4, replace(POLICY, seed=4))
    engine.load(publisher.snapshot(3, replace(POLICY, seed=3)))
    engine.load(newest)
    after = greedy(engine, 10)
    fresh = VllmEngine(max_batch_completions=8, cache_bytes=2**26)
    try:
        fresh.load(newest)
        assert greedy(fresh, 10) == after
    finally:
        fresh.close()
    assert after != before


def test_requests_that_unproven_weights_touched_are_sampled_anew(engine: VllmEngine, publisher: Publisher) -> None:
    for request_id in range(8):  # four times what runs at once
        engine.submit(replace(LONG, request_id=request_id))
    engine.load(publisher.snapshot(5, replace(POLICY, seed=5)))
    engine.logprobs([(2, 3, 4)], [1])  # the canary runs beside them
    engine.restore(publisher.snapshot(6, POLICY))
    finished = answers(engine, 8)
    assert [one.request_id for one in finished] == list(range(8))
    completions = [completion for one in finished for completion in one.completions]
    assert {completion.policy_version for completion in completions} in ({6}, {0, 6})  # some may have been done before
    assert all(completion.spans == () for completion in completions)


def test_a_version_of_another_shape_is_refused_before_it_is_touched(engine: VllmEngine, publisher: Publisher) -> None:
    before = greedy(engine, 0)
    with pytest.raises(LoadError, match="expected shape"):
        engine.load(publisher.snapshot(7, replace(POLICY, width=128)))
    assert engine.policy_version == 0
    assert greedy(engine, 10) == before


def test_a_prompt_longer_than_the_context_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(UnusablePrompt, match="expected at most 64 tokens"):
        engine.submit(replace(REQUEST, text="1" * CONTEXT))
