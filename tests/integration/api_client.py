"""The REST API on a real database, for tests: an application of its own run, and the rows a live run would write."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from sqlalchemy import Connection, func, insert, select, update
from starlette.testclient import TestClient

from services.buffer.api import create_app
from services.buffer.api_settings import ApiSettings
from services.buffer.migrations import migrate
from services.buffer.tables import (
    batches,
    dead_letters,
    draws,
    evaluations,
    issues,
    payloads,
    prompts,
    runs,
    steps,
    trajectories,
)
from tba_cli.local.postgres import create_database
from tba_common.messages import Step
from tests.logins import as_role

TASK: dict[str, Any] = {
    "name": "addition",
    "reward": [{"scorer": "verifier", "options": {"match": "exact"}}],
    "prompts": [{"text": f"{number}+1=", "reference": str(number + 1)} for number in range(3)]
    + [{"text": "9+9=", "reference": "18", "split": "eval"}],
}


def migrated_database(server_url: str) -> str:
    """The URL of a new database with the newest schema; tests share it and keep apart by `run_id`."""
    url = create_database(server_url, f"api_{uuid.uuid4().hex}")
    migrate(url)
    return url


@contextmanager
def serving(database_url: str, run_id: str, **settings: Any) -> Iterator[TestClient]:
    """A client of an application on this database, where it may do what an API needs."""
    app = create_app(ApiSettings(database_url=as_role(database_url, "tba_api"), run_id=run_id, **settings))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


class Line:
    """What the other services of a run would have written: call, and the row is there."""

    def __init__(self, connection: Connection, run_id: str) -> None:
        self.connection = connection
        self.run_id = run_id

    def prompt_ids(self, task_id: int, split: str = "train") -> list[int]:
        chosen = select(prompts.c.prompt_id).where(prompts.c.task_id == task_id, prompts.c.split == split)
        return list(self.connection.scalars(chosen.order_by(prompts.c.prompt_id)))

    def buffer_says(self, *, policy_version: int, **status: Any) -> None:
        said = {"policy_version": policy_version, "status": status, "status_at": func.now()}
        self.connection.execute(update(runs).where(runs.c.run_id == self.run_id).values(said))

    def issue(self, task_id: int | None, prompt_id: int | None, **columns: Any) -> int:
        row = {
            "run_id": self.run_id,
            "task_id": task_id,
            "prompt_id": prompt_id,
            "purpose": "train",
            "completions": 2,
            "partition": 0,
        }
        statement = insert(issues).values(row | columns).returning(issues.c.issue_id)
        return int(self.connection.execute(statement).scalar_one())

    def dead_letter(self, issue_id: int | None, reason: str) -> None:
        """A service could not handle the message of an order."""
        where = {"topic": "tba.prompts", "partition": 0, "offset": 0, "schema_header": "prompt/1", "body": b""}
        row = {"run_id": self.run_id, "issue_id": issue_id, "service": "tba-generator", "reason": reason}
        self.connection.execute(insert(dead_letters).values(row | where))

    def trajectory(self, task_id: int, prompt_id: int, *, issue_id: int, text: str = "2", **columns: Any) -> int:
        row = {
            "run_id": self.run_id,
            "task_id": task_id,
            "prompt_id": prompt_id,
            "issue_id": issue_id,
            "fingerprint": uuid.uuid4(),
            "policy_version": 0,
            "reward": 1.0,
            "tokens": 2,
            "temperature": 1.0,
            "top_p": 1.0,
            "finish_reason": "eos",
            "scores": [{"scorer": "verifier", "version": "1", "value": 1.0, "seconds": 0.01}],
        }
        statement = insert(trajectories).values(row | columns).returning(trajectories.c.trajectory_id)
        trajectory_id = int(self.connection.execute(statement).scalar_one())
        packed = {
            "token_ids": np.array([5, 1], dtype="<i4").tobytes(),
            "logprobs": np.array([-0.5, -np.inf], dtype="<f4").tobytes(),
        }
        self.connection.execute(
            insert(payloads).values(trajectory_id=trajectory_id, run_id=self.run_id, text=text, **packed)
        )
        return trajectory_id

    def evaluation(self, task_id: int, prompt_id: int, *, policy_version: int, reward: float | None) -> None:
        state = {} if reward is None else {"state": "settled", "stored": 1}
        issue_id = self.issue(task_id, prompt_id, purpose="eval", policy_version=policy_version, completions=1, **state)
        if reward is not None:
            row = {"issue_id": issue_id, "index": 0, "run_id": self.run_id, "task_id": task_id, "prompt_id": prompt_id}
            answer = {"policy_version": policy_version, "reward": reward, "text": "2", "scores": []}
            self.connection.execute(insert(evaluations).values(row | answer))

    def batch(self, batch_id: int, *, step: int | None, trajectory_id: int) -> None:
        batch = {"run_id": self.run_id, "batch_id": batch_id, "policy_version": 0, "groups": [], "trained_step": step}
        self.connection.execute(insert(batches).values(batch))
        draw = {"run_id": self.run_id, "batch_id": batch_id, "group_index": 0, "position": 0, "reward": 1.0}
        chances = {"trajectory_id": trajectory_id, "draw_logprob": -1.5, "marginal_logprob": -1.5, "policy_version": 0}
        self.connection.execute(insert(draws).values(draw | chances))

    def step(self, number: int, *, staleness: dict[int, int]) -> None:
        report = Step(
            run_id=self.run_id,
            step=number,
            batch_id=number,
            policy_version=number // 2,
            checkpoint_batch_id=0,
            loss=0.5,
            reward=0.25,
            log_z=0.0,
            log_ratio=0.0,
            grad_norm=1.0,
            beta=0.05,
            learning_rate=1e-4,
            trajectories=sum(staleness.values()),
            tokens=8,
            staleness_versions=staleness,
            step_seconds=0.5,
            wait_seconds=0.0,
        )
        row = {"run_id": self.run_id, "step": number, "batch_id": number, "policy_version": report.policy_version}
        self.connection.execute(insert(steps).values(row | {"report": report.model_dump(mode="json")}))
        self.connection.execute(update(runs).where(runs.c.run_id == self.run_id).values(step=number))
