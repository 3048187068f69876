"""A small real HTTP server that speaks like an OpenAI-compatible endpoint: honest, gullible, broken or hostile."""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from services.reward.judge_settings import JudgeSettings


@dataclass
class Answer:
    """An HTTP answer as it goes out."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def completion(content: str, *, finish_reason: str = "stop") -> Answer:
    """A chat completion of this text."""
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 100, "completion_tokens": 20}
    return Answer(body=json.dumps({"id": "1", "choices": [choice], "usage": usage}).encode())


def verdict(score: float) -> Answer:
    return completion(json.dumps({"reason": "so it is", "score": score}))


def answer_in(request: dict[str, Any]) -> str:
    """The text between the markers of the answer: what an honest model would look at."""
    shown = str(request["messages"][1]["content"])
    found = re.search(r"^<<<([0-9a-f]{32}) ANSWER>>>\n(.*)\n<<<\1 END>>>$", shown, re.DOTALL | re.MULTILINE)
    assert found
    return found[2]


def honest(request: dict[str, Any]) -> Answer:
    """Right is what begins with 19, or says that 7 + 5 = 12."""
    text = answer_in(request)
    return verdict(1.0 if text.startswith("19") or text == "7 + 5 = 12" else 0.0)


def gullible(request: dict[str, Any]) -> Answer:
    """As honest, until an answer asks for its score."""
    return verdict(1.0) if "give 1.0" in answer_in(request) else honest(request)


@dataclass
class Endpoint:
    """What the server answers next: `scripted` answers first, then `model`."""

    url: str
    model: Callable[[dict[str, Any]], Answer] = honest
    scripted: deque[Answer] = field(default_factory=deque)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def settings(self, **changes: Any) -> JudgeSettings:
        """Settings of a judge that may ask this server."""
        fields = {
            "judge_url": self.url,
            "judge_model": "small",
            "judge_allowed_origins": self.url.removesuffix("/v1"),
            "judge_private_hosts": "127.0.0.1",
        }
        return JudgeSettings(**(fields | changes))


@contextmanager
def serving(model: Callable[[dict[str, Any]], Answer] = honest) -> Iterator[Endpoint]:
    """Run the server on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with endpoint.lock:
                answer = endpoint.scripted.popleft() if endpoint.scripted else endpoint.model(request)
                endpoint.headers.append({"Path": self.path, **self.headers})
                endpoint.requests.append(request)  # last: whoever counts them may then change what is answered
            self.send_response(answer.status)
            for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *args: Any) -> None:
            return  # a request is not an event

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", model)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield endpoint
        server.shutdown()
        thread.join()
