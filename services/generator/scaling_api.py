"""The autoscaler's line to the REST API: signals in, decisions out. Only the standard library, like a probe's."""

from __future__ import annotations

import http.client
import json
import urllib.request
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter, ValidationError

from services.generator.scaling_values import Decision, Fleet, Signals

_TIMEOUT_SECONDS: Final = 5.0


class ApiUnavailable(Exception):
    """The API did not answer, or not with what it should."""


class _Override(BaseModel):
    replicas: int


class _Answer(BaseModel):
    signals: Signals | None
    override: _Override | None


@dataclass(frozen=True, slots=True)
class Observation:
    """What the API says: `signals` is None before the buffer spoke, `override` a person's number."""

    signals: Signals | None
    override: int | None


class ScalingApi:
    """One deployment's API. Every method raises `ApiUnavailable`."""

    def __init__(self, url: str, key: str | None, name: str) -> None:
        self._url = f"{url.rstrip('/')}/v1/autoscaler"
        self._headers = {"Content-Type": "application/json", "User-Agent": "tba-autoscaler"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._name = name

    def observe(self) -> Observation:
        """Read the signals and the override."""
        try:
            answer = _Answer.model_validate_json(self._ask("GET", ""))
        except ValidationError as error:
            raise ApiUnavailable(f"{self._url} answers something else: {error.errors()[0]}") from error
        return Observation(answer.signals, None if answer.override is None else answer.override.replicas)

    def report(self, decision: Decision, fleet: Fleet, signals: Signals | None, *, applied: bool) -> None:
        """Hand in a decision for the audit, and for whoever else scales."""
        body = {
            "desired": decision.desired,
            "replicas": fleet.replicas,
            "ready": fleet.ready,
            "reason": decision.reason,
            "sentence": decision.sentence,
            "applied": applied,
            "decided_by": self._name,
            "signals": None if signals is None else _SIGNALS.dump_python(signals, mode="json"),
        }
        self._ask("POST", "/decisions", body)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, self._headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
                content: bytes = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ApiUnavailable(f"{method} {self._url}{path}: {error}") from error
        return content


_SIGNALS: Final = TypeAdapter(Signals)
