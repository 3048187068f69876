from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from services.buffer.api import create_app
from services.buffer.api_guard import OPEN
from services.buffer.api_settings import ApiSettings

KEY = "a-long-key"
NOWHERE = "postgresql+psycopg://tba@127.0.0.1:1/tba"  # nothing listens on port 1
LOCKED = ApiSettings(database_url=NOWHERE, api_address="0.0.0.0:8000", api_key=SecretStr(KEY))
ON_LOOPBACK = ApiSettings(database_url=NOWHERE, max_body_bytes=1_024)


def routes() -> list[tuple[str, str]]:
    """Every method and path of the application, with values for the path parameters."""
    described = create_app(LOCKED).openapi()["paths"]
    return [
        (method.upper(), re.sub(r"\{\w+_id\}", "1", path).format(name="t"))
        for path, methods in described.items()
        for method in methods
    ]


@pytest.fixture(scope="module")
def locked() -> Iterator[TestClient]:
    with TestClient(create_app(LOCKED), base_url="http://tba.example", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(ON_LOOPBACK), base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), routes())
@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer{KEY}", "Bearer"])
def test_every_route_but_the_open_ones_wants_the_key(
    locked: TestClient, method: str, path: str, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = locked.request(method, path, headers=headers)
    if path in OPEN:
        assert answer.status_code != 401
        return
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["errors"][0]["field"] == "header:Authorization"
    assert KEY not in answer.text


@pytest.mark.parametrize(("method", "path"), routes())
def test_the_key_opens_every_route(locked: TestClient, method: str, path: str) -> None:
    assert locked.request(method, path, headers={"Authorization": f"Bearer {KEY}"}).status_code != 401


def test_what_is_open_is_the_probes_the_description_and_the_page() -> None:
    under_v1 = {path for _, path in routes() if path.startswith("/v1")}
    assert {"/healthz", "/readyz", "/version", "/openapi.json", "/", "/favicon.ico"} == OPEN
    assert under_v1
    assert not under_v1 & OPEN


def test_a_path_that_does_not_exist_wants_the_key_too(locked: TestClient) -> None:
    assert locked.get("/v1/nothing").status_code == 401
    assert locked.get("/metrics").status_code == 401


def test_the_page_is_served_without_the_key_because_it_holds_no_data(locked: TestClient) -> None:
    assert locked.get("/").status_code == 200
    assert locked.get("/static/page.js").status_code == 200


@pytest.mark.parametrize("path", ["/static/../api.py", "/static/%2e%2e/api.py", "/static/..%2fapi.py", "//v1/status"])
def test_no_spelling_of_a_path_gets_around_the_key(locked: TestClient, path: str) -> None:
    assert locked.get(path).status_code in (401, 404)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "0.0.0.0", ""])
def test_without_a_key_a_web_site_that_points_its_name_at_us_gets_nothing(client: TestClient, host: str) -> None:
    answer = client.get("/v1/status", headers={"Host": host})
    assert answer.status_code == 403
    assert answer.json()["errors"][0]["field"] == "header:Host"


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:8000"])
def test_without_a_key_this_machine_may_ask(client: TestClient, host: str) -> None:
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9999"])
def test_another_site_s_page_can_change_nothing(client: TestClient, origin: str) -> None:
    answer = client.post("/v1/tasks/t/pause", headers={"Origin": origin})
    assert answer.status_code == 403
    assert answer.json()["errors"][0]["field"] == "header:Origin"
    assert client.post("/v1/tasks/t/pause", headers={"Origin": "http://127.0.0.1:8000"}).status_code != 403


@pytest.mark.parametrize("path", ["/", "/v1/status", "/v1/nothing", "/static/style.css", "/healthz"])
def test_every_answer_carries_the_security_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-request-id"]
    assert "access-control-allow-origin" not in headers


def test_data_is_never_cached(client: TestClient) -> None:
    assert client.get("/v1/status").headers["cache-control"] == "no-store"


def test_a_request_id_is_taken_over_if_it_is_harmless(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "ci-42"}).headers["x-request-id"] == "ci-42"
    assert client.get("/healthz", headers={"X-Request-ID": "a b\tc"}).headers["x-request-id"] != "a b\tc"
    refused = client.get("/v1/nothing", headers={"X-Request-ID": "ci-43"})
    assert refused.json()["request_id"] == "ci-43"


def test_a_body_past_the_limit_is_refused_by_its_declared_length(client: TestClient) -> None:
    answer = client.post("/v1/tasks", content=b" " * 1_025, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["errors"] == [{"field": "", "expected": "at most 1024 bytes", "got": "1025 bytes"}]


def test_a_body_past_the_limit_is_refused_also_when_it_comes_in_chunks(client: TestClient) -> None:
    sent = []

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            sent.append(1)
            yield b" " * 500

    answer = client.post("/v1/tasks", content=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["errors"] == [{"field": "", "expected": "at most 1024 bytes", "got": "more than 1024 bytes"}]


def test_a_body_of_exactly_the_limit_is_read(client: TestClient) -> None:
    answer = client.post("/v1/tasks", content=b" " * 1_024, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


def test_without_a_database_the_answer_is_try_again_and_the_process_lives(client: TestClient) -> None:
    for _ in range(2):
        answer = client.get("/v1/status")
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "5"
        assert answer.json()["type"] == "urn:tba:problem:database-unavailable"
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


def test_a_crash_is_a_problem_that_tells_nothing_of_its_cause() -> None:
    app = create_app(ON_LOOPBACK)

    @app.get("/v1/crash")
    def crash() -> None:
        raise RuntimeError("the password is hunter2")

    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        answer = client.get("/v1/crash", headers={"X-Request-ID": "ci-44"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert answer.json()["type"] == "urn:tba:problem:internal-error"
    assert answer.json()["request_id"] == "ci-44"
    assert "hunter2" not in answer.text


@pytest.mark.parametrize(
    ("header", "value"), [("Host", "[::1"), ("Host", "["), ("Origin", "http://["), ("Origin", "[")]
)
def test_an_address_that_is_none_is_refused_like_a_foreign_one(client: TestClient, header: str, value: str) -> None:
    answer = client.post("/v1/graders:validate", headers={header: value}, json={})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (403, f"header:{header}")


def test_a_key_may_be_of_any_alphabet() -> None:
    key = "schlüssel-ключ"
    settings = LOCKED.model_copy(update={"api_key": SecretStr(key)})
    with TestClient(create_app(settings), base_url="http://tba.example", raise_server_exceptions=False) as client:
        assert client.get("/v1/status", headers={b"Authorization": b"Bearer " + key.encode()}).status_code != 401
        assert client.get("/v1/status", headers={b"Authorization": b"Bearer schl"}).status_code == 401
