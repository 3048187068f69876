"""docs/api.md is run: every curl in it gets the answer that is printed under it."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine
from starlette.testclient import TestClient

from services.buffer.api import create_app
from services.buffer.api_settings import ApiSettings
from services.buffer.problems import KINDS
from tests.integration.api_client import TASK, Line, migrated_database, serving

pytestmark = pytest.mark.integration
DOCUMENT = (Path(__file__).parents[2] / "docs/api.md").read_text()
NOWHERE = "postgresql+psycopg://tba@127.0.0.1:1/tba"


@dataclass(frozen=True)
class Example:
    """One curl command, and what is printed under it."""

    method: str
    url: str
    headers: Mapping[str, str]
    data: str | None
    status: int
    media_type: str
    body: str


def examples() -> Iterator[Example]:
    parser = argparse.ArgumentParser()
    parser.add_argument("-sS", action="store_true")
    parser.add_argument("-X", default="GET")
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d", "--data-binary")
    parser.add_argument("url")
    for block in re.findall(r"```console\n(.*?)```", DOCUMENT, re.DOTALL):
        for text in re.split(r"^\$ curl ", block, flags=re.MULTILINE)[1:]:
            command, status, media_type, body = re.split(r"\n(\d{3})(?: (\S+))?\n", text, maxsplit=1)
            curl = parser.parse_args(shlex.split(command.replace("\\\n", " ")))
            headers = dict(header.split(": ", 1) for header in curl.H)
            if curl.data_binary is not None:
                headers.setdefault("Content-Type", "application/x-www-form-urlencoded")  # as curl does
            yield Example(curl.X, curl.url, headers, curl.data_binary, int(status), media_type or "", body)


def ask(client: TestClient, example: Example, directory: Path) -> Any:
    data: str | bytes | None = example.data
    if example.data is not None and example.data.startswith("@"):
        data = (directory / example.data[1:]).read_bytes()
    path = example.url.partition(urlsplit(example.url).netloc)[2]
    return client.request(example.method, path, headers=example.headers, content=data)


def shown_part(got: Any, shown: Any) -> Any:
    """What of `got` the document shows: the named fields of objects, all of everything else."""
    if isinstance(shown, dict) and isinstance(got, dict):
        return {name: shown_part(got.get(name), value) for name, value in shown.items()}
    if isinstance(shown, list) and isinstance(got, list) and len(shown) == len(got):
        return [shown_part(one, other) for one, other in zip(got, shown, strict=True)]
    return got


def prepare(client: TestClient, url: str, run_id: str) -> None:
    """A run whose learner has published version 0 and whose buffer has begun, a task and a dead letter to delete."""
    client.post("/v1/tasks", json=TASK | {"name": "old-task"})
    engine = create_engine(url)
    with engine.begin() as connection:
        line = Line(connection, run_id)
        line.buffer_says(policy_version=0, trajectories=0, blocked="min_size")
        for reason in ("a prompt of 900 tokens", "no such version"):
            line.dead_letter(None, reason)
    engine.dispose()


def test_every_example_gets_the_answer_that_is_printed_under_it(postgres_url: str, run_id: str, tmp_path: Path) -> None:
    url = migrated_database(postgres_url)
    (tmp_path / "33-MiB.json").write_bytes(b" " * (33 << 20))
    elsewhere = {"api_address": "0.0.0.0:80", "api_key": SecretStr("sesame")}
    with ExitStack() as stack:
        clients = {
            "127.0.0.1:8000": stack.enter_context(serving(url, run_id)),
            "tba.example": stack.enter_context(serving(url, run_id, **elsewhere)),
            "no-database.example": stack.enter_context(serving(NOWHERE, run_id, **elsewhere)),
        }
        prepare(clients["127.0.0.1:8000"], url, run_id)
        for example in examples():
            answer = ask(clients[urlsplit(example.url).netloc], example, tmp_path)
            media_type = answer.headers.get("content-type", "").partition(";")[0]
            assert (answer.status_code, media_type) == (example.status, example.media_type), example
            if not example.body.strip():
                continue
            shown = json.loads(example.body)
            assert shown_part(answer.json(), shown) == shown, example
            if example.status >= 400:
                assert set(answer.json()) - {"request_id"} == set(shown), example


def test_every_kind_of_problem_is_documented() -> None:
    assert [code for code in KINDS if code not in DOCUMENT] == []


def test_every_endpoint_has_its_curl() -> None:
    shown = {(example.method.lower(), urlsplit(example.url).path) for example in examples()}
    described = create_app(ApiSettings()).openapi()["paths"]
    missing = [
        (method, path)
        for path, methods in described.items()
        for method in methods
        if not any(one == method and re.fullmatch(re.sub(r"\{\w+\}", "[a-z0-9-]+", path), two) for one, two in shown)
    ]
    assert missing == []
