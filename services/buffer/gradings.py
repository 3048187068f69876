"""Gradings as rows: texts that came through the API, scored along the line as if the policy had written them.

A graded text has no tokens, for nobody tokenised it. So a rule about lengths cannot hold for it, and is left out.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from sqlalchemy import Connection, func, insert, select, update

from services.buffer.arrivals import scores_of
from services.buffer.orders import Issue
from services.buffer.request_tables import gradings
from services.buffer.tables import issues
from tba_common.messages import Completion, Prompt, Rollout, Trajectories
from tba_common.tasks import Combination, Frozen, Sampling, ScorerTerm


class Request(Frozen):
    """What is graded, complete: the task may change or go while it is on its way."""

    text: str
    system: str | None
    prompt_format: Literal["text", "chat"]
    reference: str | None
    metadata: dict[str, Any]
    completions: tuple[str, ...]
    sampling: Sampling
    reward: tuple[ScorerTerm, ...]
    combination: Combination


def order(connection: Connection, run_id: str, limit: int) -> list[int]:
    """Make orders of the oldest gradings that have none; return their ids."""
    waiting = select(gradings).where(gradings.c.run_id == run_id, gradings.c.issue_id.is_(None))
    made = []
    for row in connection.execute(waiting.order_by(gradings.c.grading_id).limit(limit)).all():
        values = {"run_id": run_id, "task_id": row.task_id, "purpose": "grade", "request_id": row.grading_id}
        count = len(row.request["completions"])
        issue = insert(issues).values(**values, completions=count, partition=0).returning(issues.c.issue_id)
        issue_id = int(connection.execute(issue).scalar_one())
        mine = update(gradings).where(gradings.c.grading_id == row.grading_id)
        connection.execute(mine.values(issue_id=issue_id))
        made.append(issue_id)
    return made


def rollout_of(connection: Connection, run_id: str, issue: Issue) -> Rollout:
    """Return the message that orders a grading."""
    row = connection.execute(select(gradings).where(gradings.c.grading_id == issue.request_id)).one()
    asked = Request.model_validate(row.request)
    prompt = Prompt(
        run_id=run_id,
        issue_id=issue.issue_id,
        attempt=issue.attempt,
        task_id=issue.task_id,
        prompt_id=issue.prompt_id,
        purpose="grade",
        combination=asked.combination.model_copy(update={"min_tokens": 0}),
        **{name: getattr(asked, name) for name in ("text", "system", "prompt_format", "reference", "metadata")},
        **{name: getattr(asked, name) for name in ("sampling", "reward")},
    )
    return Rollout.model_validate(
        {
            "run_id": run_id,
            "prompt": prompt,
            "prompt_token_ids": [],
            "completions": [_untokenised(text) for text in asked.completions],
            "temperature": asked.sampling.temperature,
            "top_p": asked.sampling.top_p,
            "generator": "tba-api",
            "remaining": tuple(term.scorer for term in asked.reward),
        }
    )


def store(connection: Connection, grading_id: int, trajectories: Trajectories) -> None:
    """Write what the scorers said."""
    responses = trajectories.rollout.responses
    scores = scores_of(trajectories.rollout)
    result = [
        {
            "reward": float(reward),
            "scores": json.loads(scores[index]),
            "responses": [_storable(text) for text in responses[index]] if responses else [],
        }
        for index, reward in enumerate(trajectories.rewards)
    ]
    mine = update(gradings).where(gradings.c.grading_id == grading_id)
    connection.execute(mine.values(result=result, fault=None, settled_at=func.now()))


def fail(connection: Connection, grading_id: int, reason: str) -> None:
    """Write why a grading has no result."""
    mine = update(gradings).where(gradings.c.grading_id == grading_id)
    connection.execute(mine.values(fault=_storable(reason), settled_at=func.now()))


def reopen(connection: Connection, grading_id: int) -> None:
    """Forget why it has no result: it is on its way again."""
    mine = update(gradings).where(gradings.c.grading_id == grading_id)
    connection.execute(mine.values(fault=None, settled_at=None))


def _untokenised(text: str) -> Completion:
    values = {"token_ids": [], "logprobs": [], "text": text, "finish_reason": "eos", "policy_version": -1}
    return Completion.model_validate(values)


def _storable(text: str) -> str:
    """PostgreSQL cannot hold the NUL character in text."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}")
