"""One visit of a rollout to a scorer; and all visits in a row, to grade a text before any compute is spent on it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from services.reward.scorer import Scorer
from services.reward.slip import next_term, stamp
from tba_common.codec import BadMessage
from tba_common.messages import Completion, Prompt, Rollout, Score, Trajectories


def visit(scorer: Scorer, rollout: Rollout) -> Rollout | Trajectories:
    """Score a rollout and stamp its slip.

    Raises:
        BadMessage: the rollout should not be here, or cannot be scored as it is.
        ScoringFailed: the scorer found no score.
    """
    term = next_term(rollout, scorer.name)
    started = time.perf_counter()
    values = scorer.score(rollout, term.options)
    seconds = time.perf_counter() - started
    return stamp(rollout, Score(scorer=scorer.name, version=scorer.version, values=values, seconds=seconds))


def grade(scorers: Mapping[str, Scorer], prompt: Prompt, text: str) -> Trajectories:
    """Score one given text as if the policy had answered `prompt` with it: the same slip, the same reward.

    Raises:
        BadMessage, ScoringFailed: as `visit`; also when a scorer of the reward is not among `scorers`.
    """
    state: Rollout | Trajectories = _as_rollout(prompt, text)
    while isinstance(state, Rollout):
        following = next(iter(state.remaining), "none")
        if following not in scorers:
            raise BadMessage(f"expected a scorer among {', '.join(scorers)}, got {following}")
        state = visit(scorers[following], state)
    return state


def _as_rollout(prompt: Prompt, text: str) -> Rollout:
    """A rollout of one completion that no policy sampled: no tokens, version -1."""
    completion = Completion.model_validate(
        {"token_ids": [], "logprobs": [], "text": text, "finish_reason": "eos", "policy_version": -1}
    )
    return Rollout.model_validate(
        {
            "run_id": prompt.run_id,
            "prompt": prompt,
            "prompt_token_ids": [],
            "completions": (completion,),
            "temperature": prompt.sampling.temperature,
            "top_p": prompt.sampling.top_p,
            "generator": "grader",
            "remaining": tuple(term.scorer for term in prompt.reward),
        }
    )
