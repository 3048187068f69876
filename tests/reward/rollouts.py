"""Prompts, rollouts and scores to test with."""

from __future__ import annotations

from typing import Any

from tba_common.messages import Completion, Prompt, Rollout, Score
from tba_common.tasks import Sampling, ScorerTerm


def term(scorer: str = "verifier", weight: float = 1.0, *, at_least: float | None = None, **options: Any) -> ScorerTerm:
    """A term of a reward."""
    return ScorerTerm(scorer=scorer, weight=weight, at_least=at_least, options=options)


def prompt(*reward: ScorerTerm, reference: str | None = "19", **changes: Any) -> Prompt:
    """A prompt whose answer is 19; scored by the verifier if not said otherwise."""
    fields: dict[str, Any] = {
        "run_id": "run",
        "issue_id": 7,
        "task_id": 1,
        "prompt_id": 3,
        "text": "12+07=",
        "reference": reference,
        "sampling": Sampling(),
        "reward": (term(),),
    }
    return Prompt.model_validate(fields | ({"reward": reward} if reward else {}) | changes)


def rollout(*texts: str, of: Prompt | None = None, **changes: Any) -> Rollout:
    """An unscored rollout of these completions; `remaining` follows the prompt's reward."""
    order = of or prompt()
    fields: dict[str, Any] = {
        "run_id": order.run_id,
        "prompt": order,
        "prompt_token_ids": [1, 2],
        "completions": tuple(completion(text) for text in texts),
        "temperature": 1.0,
        "top_p": 1.0,
        "generator": "here/1",
        "remaining": tuple(term.scorer for term in order.reward),
    }
    return Rollout.model_validate(fields | changes)


def completion(text: str, *, tokens: int = 2, finish_reason: str = "eos") -> Completion:
    fields = {"token_ids": [5] * tokens, "logprobs": [-0.5] * tokens, "finish_reason": finish_reason}
    return Completion.model_validate({"text": text, "policy_version": 4} | fields)


def score(*values: float, scorer: str = "verifier", **details: list[float]) -> Score:
    fields: dict[str, Any] = {"scorer": scorer, "version": "1", "values": values, "seconds": 0.1, "details": details}
    return Score.model_validate(fields)
