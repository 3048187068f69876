"""The nouns of the line: frozen, checked where they are made, equal by value."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pytest
from pydantic import ValidationError

from tba_common.messages import MESSAGES, Completion, Prompt, Resumed, Rollout, Trajectories
from tba_common.tasks import Sampling, ScorerTerm

PROMPT: Final = Prompt(
    run_id="main",
    issue_id=1,
    task_id=1,
    prompt_id=1,
    text="1+1=",
    sampling=Sampling(),
    reward=(ScorerTerm(scorer="verifier"),),
)


def completion(**changes: Any) -> Completion:
    fields = {"token_ids": [5, 2], "logprobs": [-0.5, -0.25], "text": "2", "finish_reason": "eos", "policy_version": 0}
    return Completion.model_validate(fields | changes)


def rollout(*completions: Completion) -> Rollout:
    return Rollout(
        run_id="main",
        prompt=PROMPT,
        prompt_token_ids=[1, 2],
        completions=completions,
        temperature=1.0,
        top_p=1.0,
        generator="generator-0",
        remaining=(),
    )


def test_every_token_needs_its_logprob() -> None:
    with pytest.raises(ValidationError, match="2 token_ids but 1 logprobs"):
        completion(logprobs=[-0.5])


def test_every_completion_needs_its_reward() -> None:
    with pytest.raises(ValidationError, match="1 completions but 2 rewards"):
        Trajectories(run_id="main", rollout=rollout(completion()), rewards=[0.0, 1.0])


def test_an_array_is_flat() -> None:
    with pytest.raises(ValidationError, match=r"expected a flat array, got shape \(1, 2\)"):
        completion(token_ids=[[5, 2]])


def test_a_message_cannot_change() -> None:
    answer = completion()
    with pytest.raises(ValidationError, match="frozen"):
        answer.text = "3"  # type: ignore[misc]  # the very thing that must not work
    with pytest.raises(ValueError, match="read-only"):
        answer.token_ids[0] = 7


def test_an_array_is_a_copy_of_what_it_was_made_from() -> None:
    token_ids = np.array([5, 2])
    answer = completion(token_ids=token_ids)
    token_ids[0] = 7
    assert answer.token_ids.tolist() == [5, 2]


def test_messages_are_equal_by_value() -> None:
    one = rollout(completion())
    assert one == rollout(completion())
    assert one != rollout(completion(logprobs=[-0.5, -0.125]))
    assert one != PROMPT


def test_a_message_without_a_run_is_refused() -> None:
    with pytest.raises(ValidationError, match="run_id"):
        Resumed.model_validate({"batch_id": 1, "step": 1})


def test_every_message_says_what_it_is_and_where_it_travels() -> None:
    assert all(message.__doc__ for message in MESSAGES)
    assert len({message.__name__.lower() for message in MESSAGES}) == len(MESSAGES)
