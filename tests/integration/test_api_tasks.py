from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.integration.api_client import TASK, migrated_database, serving

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def url(postgres_url: str) -> str:
    return migrated_database(postgres_url)


@pytest.fixture
def client(url: str, run_id: str, tmp_path: Path) -> Iterator[TestClient]:
    with serving(url, run_id, data_directory=tmp_path) as client:
        yield client


def fault(answer: Any) -> tuple[int, str, str, str]:
    (one,) = answer.json()["errors"]
    return answer.status_code, one["field"], one["expected"], one["got"]


def test_a_posted_task_is_there_with_its_prompts_in_their_splits(client: TestClient) -> None:
    posted = client.post("/v1/tasks", json=TASK)
    assert posted.status_code == 201
    assert posted.headers["location"] == "/v1/tasks/addition"
    shown = client.get(posted.headers["location"]).json()
    assert shown == posted.json()
    assert shown["state"] == "active"
    assert shown["spec"]["reward"] == [
        {"scorer": "verifier", "weight": 1.0, "options": {"match": "exact"}, "at_least": None}
    ]
    assert shown["progress"] == {
        "prompts_train": 3,
        "prompts_eval": 1,
        "issues": 0,
        "trajectories": 0,
        "recent_mean_reward": None,
        "task_steps": 0,
    }


def test_a_share_of_the_prompts_is_held_out_by_their_text(client: TestClient) -> None:
    prompts = [{"text": f"{number}+1=", "reference": "x"} for number in range(40)]
    progress = client.post("/v1/tasks", json=TASK | {"prompts": prompts, "eval_fraction": 0.1}).json()["progress"]
    assert (progress["prompts_train"], progress["prompts_eval"]) == (37, 3)


def test_a_name_can_be_used_once_until_its_task_is_deleted(client: TestClient) -> None:
    client.post("/v1/tasks", json=TASK)
    again = client.post("/v1/tasks", json=TASK)
    assert fault(again) == (409, "/name", "a name that no task of this run has", '"addition"')
    assert client.delete("/v1/tasks/addition").status_code == 204
    assert client.post("/v1/tasks", json=TASK).status_code == 201


def test_a_deleted_task_is_gone_for_every_route(client: TestClient) -> None:
    client.post("/v1/tasks", json=TASK)
    client.delete("/v1/tasks/addition")
    assert client.get("/v1/tasks").json()["data"] == []
    for method, path in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/pause"),
        ("POST", "/resume"),
        ("POST", "/evaluations"),
    ]:
        answer = client.request(method, f"/v1/tasks/addition{path}")
        assert fault(answer) == (404, "path:name", "the name of a task", '"addition"')


def test_a_task_can_be_paused_and_resumed_as_often_as_one_likes(client: TestClient) -> None:
    client.post("/v1/tasks", json=TASK)
    states = [client.post(f"/v1/tasks/addition/{verb}").json()["state"] for verb in ("pause", "pause", "resume")]
    assert states == ["paused", "paused", "active"]


def test_the_tasks_come_page_by_page(client: TestClient) -> None:
    for name in ("a", "b", "c"):
        client.post("/v1/tasks", json=TASK | {"name": name})
    first = client.get("/v1/tasks", params={"limit": 2}).json()
    assert [task["name"] for task in first["data"]] == ["a", "b"]
    assert first["has_more"]
    rest = client.get("/v1/tasks", params={"limit": 2, "after": first["next_after"]}).json()
    assert [task["name"] for task in rest["data"]] == ["c"]
    assert (rest["has_more"], rest["next_after"]) == (False, None)


def test_another_run_on_the_same_database_sees_nothing_of_it(client: TestClient, url: str) -> None:
    client.post("/v1/tasks", json=TASK)
    with serving(url, "another-run") as stranger:
        assert stranger.get("/v1/tasks").json()["data"] == []
        assert stranger.get("/v1/tasks/addition").status_code == 404


def test_added_prompts_get_ids_in_the_order_they_came(client: TestClient) -> None:
    client.post("/v1/tasks", json=TASK)
    specs = [{"text": f"{number}*2=", "reference": str(2 * number)} for number in range(500)]
    answer = client.post("/v1/tasks/addition/prompts", json=specs)
    assert answer.status_code == 201
    ids = [one["prompt_id"] for one in answer.json()["data"]]
    assert len(set(ids)) == 500
    assert ids == sorted(ids)
    assert answer.json()["created"] == 500


def test_a_prompt_with_a_known_key_adds_nothing_and_keeps_its_id(client: TestClient) -> None:
    client.post("/v1/tasks", json=TASK)
    specs = [{"text": text, "reference": "1", "key": key} for text, key in [("a", "ka"), ("b", "kb"), ("a", "ka")]]
    first = client.post("/v1/tasks/addition/prompts", json=specs).json()
    assert [one["created"] for one in first["data"]] == [True, True, False]
    assert first["data"][0]["prompt_id"] == first["data"][2]["prompt_id"]
    mixed = [*specs[:1], {"text": "c", "reference": "1"}, *specs[1:2]]
    again = client.post("/v1/tasks/addition/prompts", json=mixed).json()
    assert [one["created"] for one in again["data"]] == [False, True, False]
    assert [again["data"][0]["prompt_id"], again["data"][2]["prompt_id"]] == [
        one["prompt_id"] for one in first["data"][:2]
    ]
    assert client.get("/v1/tasks/addition").json()["progress"]["prompts_train"] == 3 + 2 + 1


def test_a_known_key_with_another_text_is_refused_and_nothing_is_added(client: TestClient) -> None:
    client.post("/v1/tasks", json=TASK)
    client.post("/v1/tasks/addition/prompts", json=[{"text": "a", "reference": "1", "key": "k"}])
    answer = client.post(
        "/v1/tasks/addition/prompts",
        json=[{"text": "new", "reference": "1"}, {"text": "changed", "reference": "1", "key": "k"}],
    )
    status, field, expected, got = fault(answer)
    assert (status, field, got) == (409, "/1/key", '"k"')
    assert expected == "a new key, or the text and reference that this key was first posted with"
    assert client.get("/v1/tasks/addition").json()["progress"]["prompts_train"] == 4


def test_prompts_may_come_one_a_line(client: TestClient) -> None:
    client.post("/v1/tasks", json=TASK)
    lines = '{"text": "a", "reference": "1"}\n\n{"text": "b", "reference": "2"}\r\n'
    headers = {"Content-Type": "application/x-ndjson"}
    answer = client.post("/v1/tasks/addition/prompts", content=lines, headers=headers)
    assert answer.status_code == 201
    assert len(answer.json()["data"]) == 2
    bad = client.post("/v1/tasks/addition/prompts", content=lines + '{"text": 5}\n', headers=headers)
    assert fault(bad) == (422, "/2/text", "a valid string", "5")
    broken = client.post("/v1/tasks/addition/prompts", content=lines + "{\n", headers=headers)
    assert broken.status_code == 400
    assert broken.json()["errors"][0]["field"] == "/2"
    empty = client.post("/v1/tasks/addition/prompts", content="\n \n", headers=headers)
    assert fault(empty) == (422, "", "1 to 10000 lines", "0 lines")


def test_ten_thousand_prompts_are_taken_and_one_more_is_refused(client: TestClient) -> None:
    client.post("/v1/tasks", json=TASK)
    specs = [{"text": str(number), "reference": "1"} for number in range(10_001)]
    refused = client.post("/v1/tasks/addition/prompts", json=specs)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["expected"] == "at most 10000 items"
    assert client.post("/v1/tasks/addition/prompts", json=specs[:-1]).json()["created"] == 10_000


def test_a_task_may_name_a_file_of_prompts(client: TestClient, tmp_path: Path) -> None:
    specs = [{"text": f"{number}", "reference": "1", "metadata": {"n": number}} for number in range(6_000)]
    (tmp_path / "numbers.jsonl").write_text("\n".join(map(json.dumps, specs)))
    body = {name: value for name, value in TASK.items() if name != "prompts"} | {"prompts_path": "numbers.jsonl"}
    assert client.post("/v1/tasks", json=body).json()["progress"]["prompts_train"] == 6_000


@pytest.mark.parametrize(
    ("content", "field", "expected", "got"),
    [
        ("", "/prompts_path", "at least one prompt", "an empty file"),
        ('\n{"text": ""}', "/prompts_path/0/text", "at least 1 character (line 2)", '""'),
        ('{"text": "a", "reference": "1"}\n{"text": "b"}', "/prompts_path/1/reference", None, "nothing"),
        ('{"text": "a", "reference": "1"}\nnot json', "/prompts_path/1", None, None),
    ],
)
def test_a_file_that_does_not_fit_is_refused_whole(
    client: TestClient, tmp_path: Path, content: str, field: str, expected: str | None, got: str | None
) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    body = {name: value for name, value in TASK.items() if name != "prompts"} | {"prompts_path": "bad.jsonl"}
    answer = client.post("/v1/tasks", json=body)
    (one,) = answer.json()["errors"]
    assert (answer.status_code, one["field"]) == (422, field)
    assert expected is None or one["expected"] == expected
    assert got is None or one["got"] == got
    assert client.get("/v1/tasks/addition").status_code == 404


def test_prompts_come_inline_or_from_a_file_and_not_both(client: TestClient) -> None:
    expected = "exactly one of prompts and prompts_path"
    both = client.post("/v1/tasks", json=TASK | {"prompts_path": "a.jsonl"})
    assert fault(both) == (422, "/prompts", expected, "both")
    neither = client.post("/v1/tasks", json={name: value for name, value in TASK.items() if name != "prompts"})
    assert fault(neither) == (422, "/prompts", expected, "neither")


def test_hostile_text_comes_back_as_it_went_in(client: TestClient) -> None:
    text = "</script><script>alert(1)</script>\u202e\x1b[2J '; DROP TABLE tasks; -- \U0001f600"
    client.post("/v1/tasks", json=TASK)
    specs = [{"text": text, "reference": "1", "key": text, "metadata": {text: text}}]
    assert client.post("/v1/tasks/addition/prompts", json=specs).status_code == 201
    assert client.post("/v1/tasks/addition/prompts", json=specs).json()["created"] == 0


def test_an_evaluation_is_recorded_once_per_version(client: TestClient, url: str, run_id: str) -> None:
    from sqlalchemy import create_engine

    from tests.integration.api_client import Line

    client.post("/v1/tasks", json=TASK)
    early = client.post("/v1/tasks/addition/evaluations")
    assert fault(early) == (409, "/policy_version", "a published policy version", "none published yet")
    engine = create_engine(url)
    with engine.begin() as connection:
        Line(connection, run_id).buffer_says(policy_version=4)
    engine.dispose()
    newest = client.post("/v1/tasks/addition/evaluations")
    assert newest.status_code == 202
    assert newest.headers["location"] == "/v1/evaluations?task=addition"
    assert newest.json() == {"task": "addition", "policy_version": 4, "prompts": 1, "created": True}
    assert client.post("/v1/tasks/addition/evaluations", json={"policy_version": 4}).json()["created"] is False
    assert client.post("/v1/tasks/addition/evaluations", json={"policy_version": 2}).json()["policy_version"] == 2
    future = client.post("/v1/tasks/addition/evaluations", json={"policy_version": 5})
    assert fault(future) == (422, "/policy_version", "at most 4, the newest version", "5")
    client.post("/v1/tasks", json=TASK | {"name": "all-train", "prompts": TASK["prompts"][:3]})
    nothing = client.post("/v1/tasks/all-train/evaluations")
    assert fault(nothing) == (409, "path:name", "a task with prompts in the eval split", "none held out")
