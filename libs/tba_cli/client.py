"""A typed client of the REST API. A request that changes something happens once, however often it is retried."""

from __future__ import annotations

import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from types import TracebackType
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from tba_cli.answers import (
    Autoscaler,
    Evaluation,
    EvaluationRequest,
    PostedPrompt,
    Problem,
    Status,
    StepAnswer,
    TaskAnswer,
    Trajectory,
)
from tba_cli.errors import ApiError, BadInput, TbaError, Unavailable
from tba_common.tasks import PromptSpec, Task

PROMPTS_AT_ONCE: Final = 10_000  # the API takes no more in one request
_BYTES_AT_ONCE: Final = 16 << 20  # half of what it takes by default
_ATTEMPTS: Final = 5
_FIRST_PAUSE_SECONDS: Final = 0.25
_TIMEOUT_SECONDS: Final = 30.0
_LATER: Final = {httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT}

A = TypeVar("A", Evaluation, StepAnswer, TaskAnswer, Trajectory)


class Client:
    """A connection to one deployment, as a context manager.

    Every method raises `ApiError` when the API refuses, `Unavailable` when it did not answer after `attempts` tries,
    and `TbaError` when something else answers there.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        attempts: int = _ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self._attempts = attempts
        self._sleep = sleep
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        try:
            host = httpx.URL(url).host
        except httpx.InvalidURL as error:
            raise BadInput(f"expected the URL of an API such as http://127.0.0.1:8000, got {url!r}: {error}") from error
        loopback = host in {"127.0.0.1", "::1", "localhost"}  # a proxy of the environment would not find ours
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=_TIMEOUT_SECONDS, trust_env=not loopback, verify=_tls(not loopback)
        )

    def status(self) -> Status:
        """The run at one glance."""
        return Status.model_validate_json(self._get("/v1/status").content)

    def tasks(self) -> list[TaskAnswer]:
        """Every task with its progress, oldest first."""
        return list(self._pages(TaskAnswer, "/v1/tasks", {"limit": 500}))

    def task(self, name: str) -> TaskAnswer:
        """One task with its progress."""
        return TaskAnswer.model_validate_json(self._get(_task(name)).content)

    def post_task(self, task: Task, prompts: Sequence[PromptSpec]) -> TaskAnswer:
        """Post a task; prompts beyond what one request takes follow it."""
        first, *rest = _portions(prompts)
        body = {**_json(task), "prompts": [_json(prompt) for prompt in first]}
        answer = TaskAnswer.model_validate_json(self._change("POST", "/v1/tasks", body).content)
        for portion in rest:
            self._add(task.name, portion)
        return self.task(task.name) if rest else answer

    def post_document(self, document: Mapping[str, Any]) -> TaskAnswer:
        """Post a task as the API's own JSON, prompts and all."""
        return TaskAnswer.model_validate_json(self._change("POST", "/v1/tasks", document).content)

    def add_prompts(self, name: str, prompts: Sequence[PromptSpec]) -> list[PostedPrompt]:
        """Add prompts to a task, and say what became of each."""
        return [posted for portion in _portions(prompts) for posted in self._add(name, portion)]

    def pause(self, name: str) -> TaskAnswer:
        """Order no more completions for a task."""
        return TaskAnswer.model_validate_json(self._change("POST", f"{_task(name)}/pause").content)

    def resume(self, name: str) -> TaskAnswer:
        """Go on with a paused task."""
        return TaskAnswer.model_validate_json(self._change("POST", f"{_task(name)}/resume").content)

    def delete(self, name: str) -> None:
        """Take a task out of the run for good."""
        self._change("DELETE", _task(name))

    def evaluate(self, name: str, policy_version: int | None = None) -> EvaluationRequest:
        """Ask for an evaluation with one policy version, the newest by default."""
        body = {} if policy_version is None else {"policy_version": policy_version}
        return EvaluationRequest.model_validate_json(self._change("POST", f"{_task(name)}/evaluations", body).content)

    def autoscaler(self) -> Autoscaler:
        """What the autoscaler sees, decided, and is told."""
        return Autoscaler.model_validate_json(self._get("/v1/autoscaler").content)

    def desired_generators(self) -> int:
        """How many generators there should be; refused while nobody decides."""
        return int(self._get("/v1/autoscaler/desired").json()["desired"])

    def override_autoscaler(self, replicas: int, until: datetime) -> None:
        """Put a number in place of the autoscaler's until a time."""
        self._change("POST", "/v1/autoscaler/override", {"replicas": replicas, "until": until.isoformat()})

    def clear_override(self) -> None:
        """Let the autoscaler decide again."""
        self._change("DELETE", "/v1/autoscaler/override")

    def steps(self, after: int = -1) -> list[StepAnswer]:
        """Every optimiser step after one, in order."""
        return list(self._pages(StepAnswer, "/v1/steps", {"after": after, "limit": 1_000}))

    def evaluations(self, task: str | None = None) -> list[Evaluation]:
        """Every evaluation, by policy version."""
        return list(self._pages(Evaluation, "/v1/evaluations", {"task": task}))

    def trajectories(
        self,
        *,
        task: str | None = None,
        policy_version: int | None = None,
        min_reward: float | None = None,
        max_reward: float | None = None,
        limit: int = 50,
    ) -> list[Trajectory]:
        """The newest trajectories that fit, at most `limit` (up to 200)."""
        query = {"task": task, "policy_version": policy_version, "min_reward": min_reward, "max_reward": max_reward}
        page = self._get("/v1/trajectories", {**query, "limit": limit}).json()
        return [Trajectory.model_validate(item) for item in page["data"]]

    def generator_versions(self, task: str) -> int:
        """How many policy versions wrote at least one of a task's stored trajectories."""
        newest = self.status().policy_version
        versions = range(0 if newest is None else newest + 1)
        return sum(bool(self.trajectories(task=task, policy_version=version, limit=1)) for version in versions)

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> httpx.Response:
        """Read what a path has."""
        return self._get(path, query)

    def change(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Change something, once."""
        return self._change(method, path, body)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, path: str, query: Mapping[str, Any] | None = None) -> httpx.Response:
        asked = {name: value for name, value in (query or {}).items() if value is not None}
        return self._ask(self._http.build_request("GET", path, params=asked))

    def _change(self, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return self._ask(self._http.build_request(method, path, json=body, headers=headers))

    def _add(self, name: str, prompts: Sequence[PromptSpec]) -> list[PostedPrompt]:
        answer = self._change("POST", f"{_task(name)}/prompts", [_json(prompt) for prompt in prompts])
        return [PostedPrompt.model_validate(item) for item in answer.json()["data"]]

    def _pages(self, kind: type[A], path: str, query: Mapping[str, Any]) -> Iterator[A]:
        after = query.get("after")
        while True:
            page = self._get(path, {**query, "after": after}).json()
            yield from (kind.model_validate(item) for item in page["data"])
            if not page["has_more"]:
                return
            after = page["next_after"]

    def _ask(self, request: httpx.Request) -> httpx.Response:
        reason = ""
        for attempt in range(self._attempts):
            if attempt:
                self._sleep(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
            try:
                response = self._http.send(request)
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
                continue
            if response.is_success:
                return self._ours(response)
            problem = _problem(response)
            if response.status_code not in _LATER and not problem.type.endswith(":request-in-progress"):
                raise ApiError(problem)
            reason = problem.detail or problem.title
        raise Unavailable(f"{self.url} does not answer: {reason}")

    def _ours(self, response: httpx.Response) -> httpx.Response:
        kind = response.headers.get("content-type", "nothing")
        if response.status_code != httpx.codes.NO_CONTENT and not kind.startswith("application/json"):
            raise TbaError(f"{response.url}: expected JSON, got {kind}: is {self.url} the address of the API?")
        return response


@cache
def _tls(trust_env: bool) -> ssl.SSLContext:
    """The trusted certificates, which take longer to read than most requests to answer: once a process."""
    return httpx.create_ssl_context(trust_env=trust_env)


def _task(name: str) -> str:
    return f"/v1/tasks/{quote(name, safe='')}"


def _json(value: Task | PromptSpec) -> dict[str, Any]:
    return value.model_dump(mode="json", exclude_unset=True)


def _portions(prompts: Sequence[PromptSpec]) -> list[list[PromptSpec]]:
    """Cut a list into what one request takes; the first portion is there even when it is empty."""
    portions: list[list[PromptSpec]] = [[]]
    size = 0
    for prompt in prompts:
        bytes_more = len(prompt.model_dump_json())
        if len(portions[-1]) == PROMPTS_AT_ONCE or (portions[-1] and size + bytes_more > _BYTES_AT_ONCE):
            portions.append([])
            size = 0
        portions[-1].append(prompt)
        size += bytes_more
    return portions


def _problem(response: httpx.Response) -> Problem:
    """Read a refusal; one that is not ours, such as a gateway's page, is told by its status alone."""
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return Problem(title=response.reason_phrase or "refused", status=response.status_code)
