"""Prompts read once: the same numbers and the same gradient as a forward pass of every row, for less work."""

from __future__ import annotations

from typing import Any, Final

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, MistralConfig

from services.learner.collate import Rows, pad_rows
from services.learner.policy import Policy, sequence_logprob
from services.learner.shared_prompts import shared_prompt_logprob, shares_prompts
from tests.learner.groups import EOS, PAD

pytestmark = pytest.mark.integration

SHORT: Final = [19, 14]
LONG: Final = [25, 30, PAD, EOS, 33, 34]  # padding and EOS may stand in a prompt
COMPLETIONS: Final = [[40, 41, EOS], [42, EOS], [43, 44, 45, 46, EOS], [PAD]]
PAIRS: Final = [(prompt, completion) for prompt in (LONG, SHORT) for completion in COMPLETIONS]


def rows_of(pairs: list[tuple[list[int], list[int]]], *, pad_token_id: int = PAD) -> Rows:
    temperature = [(0.5, 1.0, 2.0)[i % 3] for i in range(len(pairs))]
    return pad_rows(pairs, temperature=temperature, pad_token_id=pad_token_id)


def gradient(policy: Policy, logprob: Tensor) -> dict[str, Tensor]:
    weights = dict(policy.model.named_parameters())
    found = torch.autograd.grad(logprob.square().sum(), list(weights.values()))
    return dict(zip(weights, found, strict=True))


def interleaved() -> list[tuple[list[int], list[int]]]:
    return [PAIRS[i] for i in (0, 4, 1, 5, 6, 2, 3, 7)]


@pytest.mark.parametrize("pairs", [PAIRS, interleaved(), PAIRS[:4], PAIRS[3:]])
def test_each_row_has_the_log_probability_it_has_by_itself(
    policy: Policy, pairs: list[tuple[list[int], list[int]]]
) -> None:
    rows = rows_of(pairs)
    found = shared_prompt_logprob(policy.model, policy.model.config, rows)
    assert found.tolist() == pytest.approx(sequence_logprob(policy.model, rows).tolist(), rel=1e-5)


def test_the_gradient_is_that_of_every_row_by_itself(policy: Policy) -> None:
    rows = rows_of(PAIRS)
    expected = gradient(policy, sequence_logprob(policy.model, rows))
    found = gradient(policy, shared_prompt_logprob(policy.model, policy.model.config, rows))
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-4 * float(values.abs().max()))


@pytest.mark.parametrize("pad_token_id", [EOS, 40, 97])
def test_what_fills_the_padding_does_not_matter(policy: Policy, pad_token_id: int) -> None:
    model, config = policy.model, policy.model.config
    expected = shared_prompt_logprob(model, config, rows_of(PAIRS))
    assert torch.equal(shared_prompt_logprob(model, config, rows_of(PAIRS, pad_token_id=pad_token_id)), expected)


def test_a_prompt_is_read_once_and_its_last_token_with_each_completion(policy: Policy) -> None:
    read: list[tuple[int, ...]] = []

    def model(**inputs: Any) -> Any:
        read.append(tuple(inputs["input_ids"].shape))
        return policy.model(**inputs)

    shared_prompt_logprob(model, policy.model.config, rows_of(PAIRS))
    assert read == [(2, len(LONG) - 1), (len(PAIRS), max(map(len, COMPLETIONS)))]


def test_the_policy_and_its_reference_share_prompts_alike(policy: Policy) -> None:
    rows = rows_of(PAIRS)
    assert shares_prompts(policy.model.config, rows)
    shared = shared_prompt_logprob(policy.model, policy.model.config, rows)
    assert torch.equal(policy.logprob(rows), shared)
    assert torch.equal(policy.ref_logprob(rows), shared)


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([(SHORT, [40]), (LONG, [40])], id="no prompt twice"),
        pytest.param([([19], [40]), ([19], [41])], id="a prompt of one token"),
    ],
)
def test_rows_without_a_prompt_to_share_are_left_alone(pairs: list[tuple[list[int], list[int]]]) -> None:
    assert not shares_prompts(LlamaConfig(num_hidden_layers=1), rows_of(pairs))


def test_a_model_that_forgets_is_left_alone() -> None:
    rows = rows_of(PAIRS)
    assert shares_prompts(MistralConfig(num_hidden_layers=1, sliding_window=None), rows)
    assert not shares_prompts(MistralConfig(num_hidden_layers=1, sliding_window=4), rows)
