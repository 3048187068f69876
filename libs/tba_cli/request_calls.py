"""Requests that the buffer fulfils, over the client: dead letters, gradings, re-scorings, seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from tba_cli.client import Client
from tba_cli.request_answers import DeadLetter, DeadLetterDetail, Grading, Rescore

SEEDS_AT_ONCE: Final = 1_000
_PAGE: Final = 200


def dead_letters(client: Client, **query: Any) -> list[DeadLetter]:
    """Return the newest dead letters that fit, one page of them."""
    return [DeadLetter.model_validate(item) for item in client.get("/v1/dead-letters", query).json()["data"]]


def every_dead_letter(client: Client, **query: Any) -> list[DeadLetter]:
    """Return all dead letters that fit, newest first."""
    found: list[DeadLetter] = []
    after = None
    while True:
        page = client.get("/v1/dead-letters", {**query, "limit": _PAGE, "after": after}).json()
        found += [DeadLetter.model_validate(item) for item in page["data"]]
        if not page["has_more"]:
            return found
        after = page["next_after"]


def dead_letter(client: Client, dead_letter_id: int) -> DeadLetterDetail:
    """Return one dead letter with its body."""
    return DeadLetterDetail.model_validate_json(client.get(f"/v1/dead-letters/{dead_letter_id}").content)


def replay(client: Client, dead_letter_id: int) -> DeadLetter:
    """Ask for a dead letter to be sent again."""
    return DeadLetter.model_validate_json(client.change("POST", f"/v1/dead-letters/{dead_letter_id}/replay").content)


def drop(client: Client, dead_letter_id: int) -> None:
    """Forget a dead letter."""
    client.change("DELETE", f"/v1/dead-letters/{dead_letter_id}")


def grade(client: Client, body: Mapping[str, Any]) -> Grading:
    """Have completions graded; a request that waits too long is made again and waits for the same grading."""
    return Grading.model_validate_json(client.change("POST", "/v1/graders:run", dict(body)).content)


def rescore_task(client: Client, name: str, body: Mapping[str, Any]) -> Rescore:
    """Ask for a task's stored trajectories to be scored again."""
    return Rescore.model_validate_json(client.change("POST", f"{_task(name)}/rescore", dict(body)).content)


def rescore(client: Client, rescore_id: int) -> Rescore:
    """Return how far a re-scoring has come."""
    return Rescore.model_validate_json(client.get(f"/v1/rescores/{rescore_id}").content)


def seed_task(client: Client, name: str, seeds: Sequence[Mapping[str, str]]) -> int:
    """Give known answers to a task; return how many were accepted."""
    accepted = 0
    for start in range(0, len(seeds), SEEDS_AT_ONCE):
        portion = [dict(seed) for seed in seeds[start : start + SEEDS_AT_ONCE]]
        accepted += int(client.change("POST", f"{_task(name)}/seeds", portion).json()["accepted"])
    return accepted


def _task(name: str) -> str:
    return f"/v1/tasks/{quote(name, safe='')}"
