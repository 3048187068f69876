"""What the transformers engine samples, what it says about it, and what a swap of weights changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from services.generator.engine import Finished, LoadError, UnusablePrompt
from services.generator.hf_engine import HfEngine, _nucleus
from tba_common.messages import Completion
from tests.generator.tiny_policy import (
    CONTEXT,
    CUTS,
    EOS,
    PAD,
    REQUEST,
    SEQUENCES,
    TEMPLATE,
    Policy,
    Publisher,
    logprob_of,
    sample,
)

pytestmark = pytest.mark.integration


@torch.no_grad()
def teacher_forced(model: Any, finished: Finished, completion: Completion, temperature: float, top_p: float) -> Any:
    """Each token's log-probability, from one plain forward pass and a textbook top-p in float64."""
    sequence = [*finished.prompt_token_ids, *completion.token_ids.tolist()]
    logits = model(torch.tensor([sequence])).logits[0].double() / temperature
    expected = []
    for position in range(len(finished.prompt_token_ids), len(sequence)):
        probabilities = logits[position - 1].softmax(-1)
        kept, mass = [], 0.0
        for token in probabilities.argsort(descending=True).tolist():
            if mass >= top_p:
                break
            kept.append(token)
            mass += float(probabilities[token])
        assert sequence[position] in kept
        expected.append(float(np.log(float(probabilities[sequence[position]]) / mass)))
    return expected


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8), (1.0, 0.3)])
def test_behaviour_logprobs_are_those_of_the_distribution_sampled_from(
    engine: HfEngine, temperature: float, top_p: float
) -> None:
    model = Policy().model()
    finished = sample(engine, completions=8, temperature=temperature, top_p=top_p)
    for completion in finished.completions:
        expected = teacher_forced(model, finished, completion, temperature, top_p)
        np.testing.assert_allclose(completion.logprobs, expected, atol=2e-4)


def test_rows_of_different_length_temperature_and_top_p_share_a_batch_without_touching_each_other(
    engine: HfEngine,
) -> None:
    model = Policy().model()
    requests = [
        replace(REQUEST, request_id=1, text="1=", completions=3, temperature=0.5),
        replace(REQUEST, request_id=2, text="98765+43210=abcdefgh", completions=2, top_p=0.5, max_new_tokens=3),
        replace(REQUEST, request_id=3, text="0", completions=4, temperature=2.0, max_new_tokens=12),
        replace(REQUEST, request_id=4, text="<pad>", completions=1, temperature=0.0),
    ]
    for request in requests:
        engine.submit(request)
    finished = engine.collect(0)
    assert [f.request_id for f in finished] == [1, 2, 3, 4]
    for request, answer in zip(requests, finished, strict=True):
        assert len(answer.completions) == request.completions
        for completion in answer.completions:
            assert len(completion.token_ids) <= request.max_new_tokens
            expected = teacher_forced(model, answer, completion, request.temperature or 1.0, request.top_p)
            np.testing.assert_allclose(completion.logprobs, expected, atol=2e-4)


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_eos_stands_once_at_the_end_of_a_completion_that_ended_by_itself(
    publisher: Publisher, pad_is_eos: bool
) -> None:
    engine = HfEngine(device="cpu", seed=1)
    engine.load(publisher.snapshot(0, Policy(pad_is_eos=pad_is_eos)))
    completions = sample(engine, completions=200, max_new_tokens=20).completions
    ended = [c for c in completions if c.finish_reason == "eos"]
    cut = [c for c in completions if c.finish_reason == "length"]
    assert len(ended) > 50
    assert cut
    assert all(c.token_ids.tolist().count(EOS) == 1 and c.token_ids[-1] == EOS for c in ended)
    assert all(len(c.token_ids) == 20 and EOS not in c.token_ids for c in cut)
    assert not any("<eos>" in c.text for c in completions)


def test_a_completion_that_ends_on_its_last_allowed_token_ended_by_itself(engine: HfEngine) -> None:
    completions = sample(engine, completions=300, max_new_tokens=1).completions
    assert {c.finish_reason for c in completions} == {"eos", "length"}
    assert all((c.finish_reason == "eos") == (c.token_ids.tolist() == [EOS]) for c in completions)


def test_a_greedy_row_is_what_generate_gives_and_records_temperature_one_logprobs(engine: HfEngine) -> None:
    model = Policy().model()
    finished = sample(engine, completions=2, temperature=0.0, max_new_tokens=10)
    prompt = torch.tensor([finished.prompt_token_ids])
    expected = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=10, pad_token_id=PAD
    )[0, prompt.shape[1] :].tolist()
    for completion in finished.completions:
        assert completion.token_ids.tolist() == expected
        np.testing.assert_allclose(
            completion.logprobs, teacher_forced(model, finished, completion, 1.0, 1.0), atol=2e-4
        )


def test_each_row_follows_the_distribution_at_its_own_temperature(engine: HfEngine) -> None:
    model, count = Policy().model(), 4_000
    for request_id, temperature in enumerate((0.5, 2.0)):
        engine.submit(
            replace(REQUEST, request_id=request_id, completions=count, temperature=temperature, max_new_tokens=1)
        )
    answers: list[Finished] = []
    while len(answers) < 2:
        answers += engine.collect(0)
    for answer, temperature in zip(answers, (0.5, 2.0), strict=True):
        drawn = np.bincount([int(c.token_ids[0]) for c in answer.completions], minlength=22) / count
        with torch.no_grad():
            logits = model(torch.tensor([answer.prompt_token_ids])).logits[0, -1].double()
        expected = (logits / temperature).softmax(-1).numpy()
        assert np.abs(drawn - expected).max() < 0.03  # 3.8 standard errors at p = 0.5


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    probabilities = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.97, 0.01, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25]])
    kept = _nucleus(probabilities.log(), torch.tensor([0.65, 0.1, 1.0])).exp()
    expected = torch.tensor([[0, 4 / 7, 0, 3 / 7], [1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    torch.testing.assert_close(kept, expected)


def test_completions_of_one_prompt_differ_and_no_call_or_process_repeats_another(publisher: Publisher) -> None:
    snapshot = publisher.snapshot(0, Policy())
    seen = []
    for _ in range(2):
        engine = HfEngine(device="cpu")  # its seed comes from the operating system
        engine.load(snapshot)
        seen += [[c.text for c in sample(engine, completions=12, max_new_tokens=16).completions] for _ in range(2)]
    assert all(len(set(texts)) > 3 for texts in seen)  # ever fewer are ten times as rare each, and 9 one in a thousand
    assert len(set(map(tuple, seen))) == 4


def test_a_request_larger_than_a_batch_is_answered_whole_in_several_calls(publisher: Publisher) -> None:
    engine = HfEngine(device="cpu", max_batch_completions=3)
    engine.load(publisher.snapshot(0, Policy()))
    engine.submit(replace(REQUEST, request_id=1, completions=5))
    engine.submit(replace(REQUEST, request_id=2, completions=1))
    assert engine.collect(0) == []
    assert [(f.request_id, len(f.completions)) for f in engine.collect(0)] == [(1, 5), (2, 1)]
    assert engine.collect(0) == []


def test_the_folder_s_own_sampling_habits_are_ignored(publisher: Publisher) -> None:
    def with_habits(model: Any) -> None:
        model.generation_config.update(do_sample=True, top_k=1, repetition_penalty=5.0)

    engine = HfEngine(device="cpu", seed=3)
    engine.load(publisher.store.fetch(publisher.publish(0, Policy(), change=with_habits)))
    model, finished = Policy().model(), sample(engine, completions=16, max_new_tokens=3)
    assert len({tuple(c.token_ids) for c in finished.completions}) > 8
    for completion in finished.completions:
        expected = teacher_forced(model, finished, completion, 1.0, 1.0)
        np.testing.assert_allclose(completion.logprobs, expected, atol=2e-4)


def test_every_stop_token_of_the_folder_ends_a_completion(publisher: Publisher) -> None:
    def with_two_stops(model: Any) -> None:
        model.generation_config.eos_token_id = [EOS, 5]

    engine = HfEngine(device="cpu", seed=3)
    engine.load(publisher.store.fetch(publisher.publish(0, Policy(), change=with_two_stops)))
    completions = sample(engine, completions=100, max_new_tokens=20).completions
    ends = {int(c.token_ids[-1]) for c in completions if c.finish_reason == "eos"}
    assert ends == {EOS, 5}
    assert not any(token in (EOS, 5) for c in completions for token in c.token_ids[:-1])


def test_a_chat_prompt_is_wrapped_by_the_policy_s_template(publisher: Publisher) -> None:
    engine = HfEngine(device="cpu")
    engine.load(publisher.snapshot(0, Policy(chat_template=TEMPLATE)))
    assert sample(engine, text="1+2", prompt_format="chat").prompt_token_ids == (3, 12, 4, 13)
    assert sample(engine, text="1+2").prompt_token_ids == (3, 12, 4)


@pytest.mark.parametrize(
    ("template", "changes", "reason"),
    [
        (
            None,
            {"text": "1" * (CONTEXT - 5)},
            f"at most {CONTEXT} tokens, .* a prompt of 59 and 6 new ones",
        ),
        (None, {"text": ""}, "at least one token"),
        (None, {"prompt_format": "chat"}, "no chat template"),
        ("{{ raise_exception('no') }}", {"prompt_format": "chat"}, "template refuses"),
    ],
)
def test_an_unusable_prompt_is_refused_with_its_reason(
    publisher: Publisher, template: str | None, changes: dict[str, Any], reason: str
) -> None:
    engine = HfEngine(device="cpu")
    engine.load(publisher.snapshot(0, Policy(chat_template=template)))
    with pytest.raises(UnusablePrompt, match=reason):
        engine.submit(replace(REQUEST, **changes))
    assert engine.collect(0) == []


def test_a_prompt_that_just_fits_the_context_is_sampled_to_the_end(engine: HfEngine) -> None:
    assert sample(engine, text="1" * (CONTEXT - 6)).completions


@pytest.mark.parametrize("tied", [False, True])
def test_a_swap_in_place_equals_a_fresh_engine_on_the_same_weights(publisher: Publisher, tied: bool) -> None:
    swapped, fresh = HfEngine(device="cpu"), HfEngine(device="cpu")
    swapped.load(publisher.snapshot(0, Policy(seed=0, tied=tied)))
    before = sample(swapped, temperature=0.0, max_new_tokens=20).completions[0].token_ids.tolist()
    snapshot = publisher.snapshot(1, Policy(seed=1, tied=tied))
    swapped.load(snapshot)
    fresh.load(snapshot)
    after = sample(swapped, temperature=0.0, max_new_tokens=20).completions[0].token_ids.tolist()
    assert after == sample(fresh, temperature=0.0, max_new_tokens=20).completions[0].token_ids.tolist()
    assert after != before
    assert swapped.logprobs(SEQUENCES, CUTS) == fresh.logprobs(SEQUENCES, CUTS)


@pytest.mark.parametrize("tied", [False, True])
def test_logprobs_are_sums_over_the_tokens_after_the_prompt(publisher: Publisher, tied: bool) -> None:
    engine = HfEngine(device="cpu")
    engine.load(publisher.snapshot(0, Policy(tied=tied)))
    model = Policy(tied=tied).model()
    expected = [logprob_of(model, *pair) for pair in zip(SEQUENCES, CUTS, strict=True)]
    np.testing.assert_allclose(engine.logprobs(SEQUENCES, CUTS), expected, atol=1e-4)


def test_a_completion_carries_the_version_that_was_loaded_when_it_was_sampled(publisher: Publisher) -> None:
    engine = HfEngine(device="cpu", max_batch_completions=4)
    assert engine.policy_version is None
    for version in (3, 8):
        engine.load(publisher.snapshot(version, Policy(seed=version)))
        assert engine.policy_version == version
        assert {c.policy_version for c in sample(engine).completions} == {version}


def test_a_request_that_waits_through_a_swap_is_stamped_token_by_token_honestly(publisher: Publisher) -> None:
    engine = HfEngine(device="cpu", max_batch_completions=2)
    engine.load(publisher.snapshot(1, Policy()))
    engine.submit(replace(REQUEST, completions=4))
    assert engine.collect(0) == []
    engine.load(publisher.snapshot(2, Policy(seed=2)))
    (finished,) = engine.collect(0)
    assert [c.policy_version for c in finished.completions] == [1, 1, 2, 2]


def drop_a_tensor(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.norm.weight"]


def add_a_tensor(tensors: dict[str, torch.Tensor]) -> None:
    tensors["stranger"] = torch.zeros(1)


def reshape_a_tensor(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = torch.zeros(16)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (drop_a_tensor, "model.norm.weight"),
        (add_a_tensor, "stranger"),
        (reshape_a_tensor, r"model.norm.weight.*16.*32"),
    ],
)
@pytest.mark.parametrize("manifest_agrees", [True, False])
def test_weights_that_do_not_fit_are_refused_and_the_old_ones_untouched(
    publisher: Publisher,
    engine: HfEngine,
    damage: Callable[[dict[str, torch.Tensor]], None],
    reason: str,
    manifest_agrees: bool,
) -> None:
    before = engine.logprobs(SEQUENCES, CUTS)
    snapshot = publisher.snapshot(1, Policy(seed=1))
    tensors = load_file(snapshot.directory / "model.safetensors")
    damage(tensors)
    save_file(tensors, snapshot.directory / "model.safetensors", metadata={"format": "pt"})
    if manifest_agrees:
        snapshot = replace(snapshot, tensors=tuple(tensors))
    with pytest.raises(LoadError, match=reason):
        engine.load(snapshot)
    assert engine.policy_version == 0
    assert engine.logprobs(SEQUENCES, CUTS) == before


def test_another_architecture_is_refused_and_the_old_weights_untouched(publisher: Publisher, engine: HfEngine) -> None:
    before = engine.logprobs(SEQUENCES, CUTS)
    with pytest.raises(LoadError, match=r"another architecture.*embed_tokens"):
        engine.load(publisher.snapshot(1, Policy(width=64)))
    assert engine.policy_version == 0
    assert engine.logprobs(SEQUENCES, CUTS) == before


def test_an_engine_lives_on_when_the_folder_it_loaded_is_deleted(publisher: Publisher, engine: HfEngine) -> None:
    before = engine.logprobs(SEQUENCES, CUTS)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "v000000" in line]
    assert mapped == []
    shutil.rmtree(publisher.store.find(0).directory)
    assert engine.logprobs(SEQUENCES, CUTS) == before


def test_a_folder_that_is_gone_is_a_load_error_before_and_after_the_first_load(
    publisher: Publisher, engine: HfEngine, tmp_path: Path
) -> None:
    gone = replace(publisher.snapshot(1, Policy(seed=1)), directory=tmp_path / "gone")
    for each in (engine, HfEngine(device="cpu")):
        with pytest.raises(LoadError, match="version 1"):
            each.load(gone)


def test_progress_is_reported_with_every_token(publisher: Publisher) -> None:
    beats: list[None] = []
    engine = HfEngine(device="cpu", progress=lambda: beats.append(None))
    engine.load(publisher.snapshot(0, Policy()))
    longest = max(len(c.token_ids) for c in sample(engine, max_new_tokens=9).completions)
    assert len(beats) == longest
