"""The door to the judge's endpoint: one request, one text back, nothing that the endpoint can steer. The door to httpx.

No redirect is followed, no proxy or credential is taken from the environment, and a body is read only up to a size
and for a time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated, Any, Final, Literal

import httpx
from pydantic import BaseModel, Field, ValidationError

from services.reward.judge_address import AddressRefused, checked_address, origin_of
from services.reward.judge_settings import JudgeSettings
from services.reward.scorer import PassingFault, ScoringFailed
from tba_common import metrics

MAX_BODY_BYTES: Final = 256 << 10
_MAX_REASON_CHARACTERS: Final = 200
_PASSING: Final = frozenset({408, 425, 429})


class _Text(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Text
    finish_reason: Literal["stop"]


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(BaseModel):
    choices: Annotated[tuple[_Choice, ...], Field(min_length=1)]
    usage: _Usage = _Usage()


class ChatEndpoint:
    """An OpenAI-compatible `/chat/completions`. Thread-safe; a context manager."""

    def __init__(self, settings: JudgeSettings) -> None:
        self._settings = settings
        self._origin = origin_of(settings.judge_url)
        self._url = httpx.URL(settings.judge_url.rstrip("/") + "/chat/completions")
        headers = {"Host": self._url.netloc.decode(), "Accept-Encoding": "identity"}
        if key := settings.api_key():
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx.Client(
            headers=headers,
            timeout=settings.judge_timeout_seconds,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_connections=settings.judge_requests),
        )

    def __enter__(self) -> ChatEndpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def complete(
        self, messages: Sequence[dict[str, str]], *, temperature: float, response_format: dict[str, Any]
    ) -> str:
        """Return the text of one completion.

        Raises:
            PassingFault: the endpoint is busy (429), broken (5xx), away or too slow.
            ScoringFailed: it refuses the request (4xx), redirects, or answers what is no finished completion.
        """
        body = {
            "model": self._settings.judge_model,
            "messages": list(messages),
            "temperature": temperature,
            "max_tokens": self._settings.judge_max_tokens,
            "response_format": response_format,
        }
        with metrics.REWARD_JUDGE_SECONDS.time():
            status, answer = self._post(body)
        metrics.REWARD_JUDGE_REQUESTS.labels(f"{status // 100}xx").inc()
        if status in _PASSING or status >= 500:
            raise PassingFault(f"judge answered {status}")
        if status != 200:
            what = answer.decode(errors="replace")[:_MAX_REASON_CHARACTERS]
            raise ScoringFailed(f"judge: expected status 200, got {status}: {what}")
        return _content(answer)

    def _post(self, body: dict[str, Any]) -> tuple[int, bytes]:
        deadline = time.monotonic() + self._settings.judge_timeout_seconds
        try:
            address = checked_address(self._origin, self._settings.judge_private_hosts)
            # To the address that was checked; the certificate must still be that of the name.
            url, names = self._url.copy_with(host=address), {"sni_hostname": self._origin.host}
            with self._client.stream("POST", url, json=body, extensions=names) as response:
                return response.status_code, _read(response, deadline)
        except AddressRefused as refusal:
            raise ScoringFailed(f"judge {refusal}") from refusal
        except (httpx.TransportError, OSError) as fault:
            raise PassingFault(f"judge: {type(fault).__name__}: {fault}") from fault


def _read(response: httpx.Response, deadline: float) -> bytes:
    body = b""
    for part in response.iter_raw():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise ScoringFailed(f"judge: expected at most {MAX_BODY_BYTES} bytes, got more")
        if time.monotonic() > deadline:
            raise PassingFault("judge: answer did not end in time")
    return body


def _content(answer: bytes) -> str:
    try:
        completion = _Completion.model_validate_json(answer)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "body"
        raise ScoringFailed(f"judge: expected a finished chat completion, got {place}: {first['msg']}") from error
    metrics.REWARD_JUDGE_TOKENS.labels("prompt").inc(max(0, completion.usage.prompt_tokens))
    metrics.REWARD_JUDGE_TOKENS.labels("completion").inc(max(0, completion.usage.completion_tokens))
    return completion.choices[0].message.content
