"""A whole line with three scorers: what the tests of rewards stand on, and what they compute by hand."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from services.buffer.ledger import check
from tba_cli.cli import app
from tba_cli.client import Client
from tba_cli.local.stack import Stack, StackOptions
from tba_common.tasks import PromptSpec, Sampling, ScorerTerm, Task
from tests.reward.judge_server import Answer, Endpoint, answer_in, honest, serving, verdict

WEIGHTS: Final = {"verifier": 2.0, "judge": 0.5, "reference": 0.01}
_OPTIONS: Final[Mapping[str, dict[str, Any]]] = {
    "verifier": {"match": "regex", "pattern": r"\d"},
    "judge": {"rubric": "The more digits, the better."},
    "reference": {},
}
COMPOSITE: Final = Task(
    name="composite",
    reward=tuple(ScorerTerm(scorer=name, weight=w, options=_OPTIONS[name]) for name, w in WEIGHTS.items()),
    sampling=Sampling(completions=4, max_new_tokens=6),
)
SUMS: Final = Task(
    name="sums",
    reward=(ScorerTerm(scorer="verifier", options={"match": "exact"}),),
    sampling=Sampling(completions=4, max_new_tokens=6),
)
PROMPTS: Final = [PromptSpec(text=f"{a}+{b}=", reference=str(a + b)) for a in range(4) for b in range(2)]
_ENVIRONMENT: Final = {
    # The learner starves for ever: every completion is version 0's, whose reference is itself.
    "tba-buffer": {
        "TBA_MIN_SIZE": "1000000",
        "TBA_CAPACITY_PER_PROMPT": "100000",
        "TBA_GROUPS_PER_BATCH": str(len(PROMPTS) // 2),
    },
    "tba-generator": {"TBA_MAX_BATCH_COMPLETIONS": "32"},  # problems in words are many tokens
}
_CONTEXT_TOKENS: Final = 1_024  # a problem in words is longer than a sum


@dataclass(frozen=True)
class Line:
    """The stack, its API, and the endpoint that its judge asks."""

    stack: Stack
    client: Client
    endpoint: Endpoint

    def trajectories(self, **query: Any) -> list[dict[str, Any]]:
        """The newest trajectories that fit, as the API gives them."""
        found: list[dict[str, Any]] = self.client.get("/v1/trajectories", query).json()["data"]
        return found

    def trajectory(self, trajectory_id: int) -> dict[str, Any]:
        """One trajectory with everything that is known of it."""
        found: dict[str, Any] = self.client.get(f"/v1/trajectories/{trajectory_id}").json()
        return found

    def dead_letters(self, **query: Any) -> list[dict[str, Any]]:
        """The dead letters that fit."""
        found: list[dict[str, Any]] = self.client.get("/v1/dead-letters", query).json()["data"]
        return found

    def stored(self, task: str) -> int:
        """Trajectories of a task in the buffer."""
        return self.client.task(task).progress.trajectories

    def wait_for_more(self, task: str, count: int, *, seconds: float = 120.0) -> float:
        """Return how many seconds a task took to have so many more trajectories."""
        target, began = self.stored(task) + count, time.monotonic()
        self.stack.wait_for(lambda: self.stored(task) >= target, seconds=seconds, what=f"{count} more of {task}")
        return time.monotonic() - began

    @contextmanager
    def at_rest(self, task: str) -> Iterator[None]:
        """Pause a task: an answer that is sampled again brings its trajectory's scores anew, seconds and all."""
        self.client.pause(task)
        open_orders = (
            "SELECT 1 FROM issues JOIN tasks USING (task_id) WHERE name = :task AND issues.state = 'in_flight'"
        )
        self.stack.wait_for(lambda: not self.rows(open_orders, task=task), seconds=120, what=f"{task} at rest")
        yield
        self.client.resume(task)

    def rows(self, query: str, **values: Any) -> list[Any]:
        """What the database says."""
        engine = create_engine(self.stack.database_url)
        with engine.connect() as connection:
            rows = list(connection.execute(text(query), values))
        engine.dispose()
        return rows

    def discrepancies(self) -> list[str]:
        """What the ledger finds wrong, all sources as of one moment."""
        engine = create_engine(self.stack.database_url, isolation_level="REPEATABLE READ")
        with engine.connect() as connection:
            found = check(connection, self.stack.options.run_id)
        engine.dispose()
        return found

    def tba(self, *arguments: str) -> Any:
        """What a command that succeeds prints with `-o json`, or without it as text."""
        done = CliRunner().invoke(app, [*arguments, "--url", self.client.url], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout) if "json" in arguments else done.stdout


@contextmanager
def line(model: Path, directory: Path) -> Iterator[Line]:
    """A running line on which both tasks are posted."""
    policy = _with_a_longer_context(model, directory / "policy")
    with serving(opinion) as endpoint:
        judge = {
            "TBA_JUDGE_URL": endpoint.url,
            "TBA_JUDGE_MODEL": "small",
            "TBA_JUDGE_ALLOWED_ORIGINS": endpoint.url.removesuffix("/v1"),
            "TBA_JUDGE_PRIVATE_HOSTS": "127.0.0.1",
            "TBA_RETRY_ROUNDS": "1",
            "TBA_RETRY_SECONDS": "0.2",
        }
        scorers = {"tba-reward-judge": judge, "tba-reward-reference": {"TBA_MODEL": str(policy)}}
        options = StackOptions(
            directory=directory / "stack",
            model=str(policy),
            run_id="rewards",
            generators=1,
            scorers=tuple(WEIGHTS),
            env=_ENVIRONMENT | scorers,
        )
        with Stack(options) as stack, Client(stack.url) as client:
            client.post_task(COMPOSITE, PROMPTS)
            client.post_task(SUMS, PROMPTS)
            yield Line(stack, client, endpoint)


def judged(completion: str) -> float:
    """What the judge thinks of a completion: never nothing."""
    return 0.2 + 0.1 * len(re.findall(r"\d", completion))


def verified(completion: str) -> float:
    """What the verifier says of a completion."""
    return float(re.search(r"\d", completion) is not None)


def opinion(request: dict[str, Any]) -> Answer:
    """A judge that passes its canaries."""
    answer = answer_in(request)
    return honest(request) if answer.startswith("7 + 5") else verdict(judged(answer))


def broken(_: dict[str, Any]) -> Answer:
    """A judge that is not there."""
    return Answer(status=500)


def scores_of(trajectory: Mapping[str, Any]) -> dict[str, float]:
    """Each scorer's value."""
    return {score["scorer"]: score["value"] for score in trajectory["scores"]}


def attempts_of(trajectory: Mapping[str, Any], scorer: str) -> int:
    """How often a scorer was asked until it answered."""
    return next(int(score["attempts"]) for score in trajectory["scores"] if score["scorer"] == scorer)


def _with_a_longer_context(model: Path, directory: Path) -> Path:
    """The same weights: rotary positions have none of their own."""
    shutil.copytree(model, directory)
    for name, field in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        values = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps(values | {field: _CONTEXT_TOKENS}))
    return directory
