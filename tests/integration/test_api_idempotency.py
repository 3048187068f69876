from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, select, text, update
from starlette.testclient import TestClient

from services.buffer import api_idempotency
from services.buffer.request_tables import idempotency_keys
from tests.integration.api_client import TASK, migrated_database, serving

pytestmark = pytest.mark.integration
REPLAYED = "idempotency-replayed"
LINE = [{"text": "5+5=", "reference": "10"}]


@pytest.fixture(scope="module")
def url(postgres_url: str) -> str:
    return migrated_database(postgres_url)


@pytest.fixture
def client(url: str, run_id: str) -> Iterator[TestClient]:
    with serving(url, run_id) as client:
        client.post("/v1/tasks", json=TASK)
        yield client


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = create_engine(url)
    yield engine
    engine.dispose()


def add(client: TestClient, key: str, specs: Any = LINE) -> Any:
    return client.post("/v1/tasks/addition/prompts", json=specs, headers={"Idempotency-Key": key})


def train_prompts(client: TestClient) -> int:
    return int(client.get("/v1/tasks/addition").json()["progress"]["prompts_train"])


def test_a_retry_gets_the_first_answer_and_does_nothing(client: TestClient, run_id: str) -> None:
    first, again = add(client, run_id), add(client, run_id)
    assert REPLAYED not in first.headers
    assert again.headers[REPLAYED] == "true"
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert train_prompts(client) == 4


def test_a_replayed_answer_keeps_its_location(client: TestClient, run_id: str) -> None:
    headers = {"Idempotency-Key": run_id}
    answers = [client.post("/v1/tasks", json=TASK | {"name": "other"}, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert [answer.headers["location"] for answer in answers] == ["/v1/tasks/other"] * 2


def test_an_answer_without_a_body_is_replayed_too(client: TestClient, run_id: str) -> None:
    answers = [client.delete("/v1/tasks/addition", headers={"Idempotency-Key": run_id}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [204, 204]
    assert answers[1].headers[REPLAYED] == "true"
    assert client.delete("/v1/tasks/addition").status_code == 404


def test_a_key_with_another_body_is_refused(client: TestClient, run_id: str) -> None:
    add(client, run_id)
    other = add(client, run_id, [{"text": "6+6=", "reference": "12"}])
    assert other.status_code == 422
    assert other.json()["type"] == "urn:tba:problem:idempotency-key-reused"
    assert other.json()["errors"][0]["field"] == "header:Idempotency-Key"
    assert train_prompts(client) == 4


def test_the_same_key_on_another_path_is_another_request(client: TestClient, run_id: str) -> None:
    add(client, run_id)
    paused = client.post("/v1/tasks/addition/pause", headers={"Idempotency-Key": run_id})
    assert paused.json()["state"] == "paused"
    assert REPLAYED not in paused.headers


def test_a_failed_request_leaves_its_key_free(client: TestClient, run_id: str) -> None:
    headers = {"Idempotency-Key": run_id}
    assert client.post("/v1/tasks/later/pause", headers=headers).status_code == 404
    client.post("/v1/tasks", json=TASK | {"name": "later"})
    assert client.post("/v1/tasks/later/pause", headers=headers).status_code == 200


def test_many_at_once_with_one_key_do_it_once_and_get_one_answer(
    client: TestClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_idempotency, "_WAIT", text("SET LOCAL lock_timeout = '60s'"))  # a disk may stall
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: add(client, run_id), range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sorted(REPLAYED in answer.headers for answer in answers) == [False] + [True] * 7
    assert train_prompts(client) == 4


def test_many_at_once_with_one_task_name_make_one_task(client: TestClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        posts = list(pool.map(lambda _: client.post("/v1/tasks", json=TASK | {"name": "one"}), range(8)))
    assert sorted(answer.status_code for answer in posts) == [201] + [409] * 7


def test_many_at_once_with_one_prompt_key_add_one_prompt(client: TestClient) -> None:
    specs = [{"text": "7+7=", "reference": "14", "key": "7+7"}]
    with ThreadPoolExecutor(8) as pool:
        posts = list(pool.map(lambda _: client.post("/v1/tasks/addition/prompts", json=specs), range(8)))
    assert sum(answer.json()["created"] for answer in posts) == 1
    assert len({answer.json()["data"][0]["prompt_id"] for answer in posts}) == 1


def test_a_key_whose_first_request_does_not_end_is_answered_with_a_conflict(
    client: TestClient, engine: Engine, run_id: str
) -> None:
    with engine.begin() as connection:  # another server is at it
        row = {"key": run_id, "request": "POST /v1/tasks/addition/prompts", "body_sha256": b"", "status": 0}
        connection.execute(idempotency_keys.insert().values(row | {"response": {}}))
        answer = add(client, run_id)
        connection.rollback()
    assert answer.status_code == 409
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["type"] == "urn:tba:problem:request-in-progress"
    assert add(client, run_id).status_code == 201


def test_after_a_day_a_key_is_new_again(client: TestClient, engine: Engine, run_id: str) -> None:
    add(client, run_id)
    add(client, f"{run_id}-forgotten")
    mine = idempotency_keys.c.key.startswith(run_id)
    with engine.begin() as connection:
        a_day_ago = func.now() - text("interval '25 hours'")
        connection.execute(update(idempotency_keys).where(mine).values(created_at=a_day_ago))
    assert REPLAYED not in add(client, run_id).headers
    assert train_prompts(client) == 6
    with engine.connect() as connection:
        assert list(connection.scalars(select(idempotency_keys.c.key).where(mine))) == [run_id]


@pytest.mark.parametrize("key", ["", "x" * 201, "with space", "tab\tinside"])
def test_a_key_that_is_no_key_is_refused(client: TestClient, key: str) -> None:
    answer = client.post("/v1/tasks/addition/prompts", json=LINE, headers={"Idempotency-Key": key})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "header:Idempotency-Key"
