"""What the API answers about dead letters, gradings and re-scorings, as the client reads it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tba_cli.answers import Answer


class DeadLetter(Answer):
    """A message that could not be handled. Its texts are hostile."""

    dead_letter_id: int
    service: str
    reason: str
    topic: str
    task: str | None
    purpose: str | None
    issue_id: int | None
    replay: str
    replay_fault: str | None
    created_at: datetime


class DeadLetterDetail(DeadLetter):
    """A dead letter with its body."""

    schema_header: str
    size_bytes: int
    message: dict[str, Any] | None
    body: str | None
    undecodable: str | None


class Score(Answer):
    """What one scorer said."""

    scorer: str
    version: str
    value: float
    seconds: float
    attempts: int
    details: dict[str, float]


class Grade(Answer):
    """What one completion is worth."""

    reward: float
    scores: tuple[Score, ...]
    responses: tuple[str, ...]


class Grading(Answer):
    """Given completions, graded."""

    grading_id: int
    state: str
    completions: tuple[Grade, ...]


class Rescore(Answer):
    """A task's stored trajectories on their way through their scorers again."""

    rescore_id: int
    task: str
    state: str
    total: int | None
    rescored: int
    failed: int
    changed: int
    mean_old_reward: float | None
    mean_new_reward: float | None
