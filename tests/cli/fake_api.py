"""An API over real HTTP that says what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

STATUS: Final = {
    "run_id": "main",
    "policy_version": 3,
    "step": 7,
    "state": "running",
    "waiting_for": "Nothing: the line runs.",
    "tasks_active": 1,
    "tasks_paused": 0,
    "staleness": {"mean_versions": 0.5, "histogram": {"0": 8, "1": 8}},
    "rates": {"trajectories_per_minute": 750, "steps_per_minute": 30},
    "queues": {
        "prompts_in_flight": 4,
        "oldest_prompt_seconds": 1.5,
        "batches_in_flight": 2,
        "evaluations_waiting": 0,
        "dead_letters": 0,
    },
    "buffer": {"trajectories": 640, "ready_prompts": 10, "blocked": None, "silent_seconds": 0.5},
    "ledger": {
        "issued": 704,
        "stored": 600,
        "duplicates": 40,
        "dead_lettered": 0,
        "expired": 0,
        "in_flight": 64,
        "balances": True,
    },
    "a_field_of_tomorrow": 1,
}
TASK: Final = {
    "task_id": 1,
    "name": "addition",
    "state": "active",
    "created_at": "2026-01-02T03:04:05Z",
    "spec": {"name": "addition", "reward": [{"scorer": "verifier"}]},
    "progress": {
        "prompts_train": 10,
        "prompts_eval": 2,
        "issues": 40,
        "trajectories": 600,
        "recent_mean_reward": 0.625,
        "task_steps": 7,
    },
}


def step(number: int) -> dict[str, Any]:
    """A step as the API tells it."""
    return {
        "run_id": "main",
        "step": number,
        "batch_id": number,
        "policy_version": 3,
        "checkpoint_batch_id": number,
        "loss": 0.25,
        "reward": 0.5,
        "log_z": 1.0,
        "log_ratio": 0.0,
        "grad_norm": 1.0,
        "beta": 0.1,
        "learning_rate": 1e-4,
        "trajectories": 16,
        "tokens": 64,
        "staleness_versions": {"0": 8, "1": 8},
        "step_seconds": 0.2,
        "wait_seconds": 0.1,
        "created_at": "2026-01-02T03:04:05Z",
    }


def listing(*items: Any, next_after: str | None = None) -> dict[str, Any]:
    """A page of a list."""
    return {"data": list(items), "has_more": next_after is not None, "next_after": next_after}


def problem(status: int, *errors: tuple[str, str, str], code: str = "invalid-request") -> Reply:
    """A refusal."""
    faults = [{"field": where, "expected": expected, "got": got} for where, expected, got in errors]
    body = {"type": f"urn:tba:problem:{code}", "title": "It does not fit", "status": status, "errors": faults}
    return Reply(body, status)


@dataclass(frozen=True)
class Reply:
    """One answer; `hang_up` closes the connection without any."""

    body: Any = None
    status: int = 200
    hang_up: bool = False
    media_type: str = "application/json"


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any


@dataclass
class FakeApi:
    """`replies["GET /v1/status"]` are given one after the other; the last one again and again."""

    url: str
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def on(self, route: str, *replies: Any) -> None:
        """Set the replies of a route; anything but a Reply is the body of a success."""
        self.replies[route] = [reply if isinstance(reply, Reply) else Reply(reply) for reply in replies]

    def reply(self, asked: Asked) -> Reply:
        """Remember a request and choose its reply."""
        self.asked.append(asked)
        left = self.replies.get(f"{asked.method} {asked.path}", [])
        if not left:
            return problem(404, ("path", "a path that the test knows", asked.path), code="not-found")
        return left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def serve() -> Iterator[FakeApi]:
    """A fake API that lives as long as the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    api = FakeApi(f"http://127.0.0.1:{server.server_address[1]}")
    server.RequestHandlerClass = _handler(api)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(api: FakeApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            content = self.rfile.read(length)
            parts = urlsplit(self.path)
            asked = Asked(
                self.command,
                parts.path,
                dict(parse_qsl(parts.query)),
                dict(self.headers),
                json.loads(content) if content else None,
            )
            reply = api.reply(asked)
            if reply.hang_up:
                self.close_connection = True
                return
            body = b"" if reply.body is None else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815  # http.server's own names

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            return

    return Handler
