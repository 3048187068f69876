"""Red-team tasks want a permission of their own, whichever way their texts could be reached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine
from starlette.testclient import TestClient

from tests.integration.api_client import TASK, Line, migrated_database, serving

pytestmark = pytest.mark.integration
ATTACK = TASK | {"name": "attacks", "family": "redteam"}
KEYS: dict[str, Any] = {"api_key": SecretStr("plain"), "api_redteam_key": SecretStr("red")}


@pytest.fixture(scope="module")
def url(postgres_url: str) -> str:
    return migrated_database(postgres_url)


@pytest.fixture
def client(url: str, run_id: str) -> Iterator[TestClient]:
    """With both keys; requests carry the plain one."""
    with serving(url, run_id, **KEYS) as client:
        client.headers["Authorization"] = "Bearer plain"
        yield client


RED = {"Authorization": "Bearer red"}


@pytest.fixture
def trajectory_id(client: TestClient, url: str, run_id: str) -> int:
    """Of a red-team task that is there."""
    task_id = client.post("/v1/tasks", json=ATTACK, headers=RED).json()["task_id"]
    engine = create_engine(url)
    with engine.begin() as connection:
        line = Line(connection, run_id)
        prompt_id = line.prompt_ids(task_id)[0]
        issue_id = line.issue(task_id, prompt_id, state="settled", dead_lettered=2)
        line.dead_letter(issue_id, "too long")
        found = line.trajectory(task_id, prompt_id, issue_id=issue_id)
    engine.dispose()
    return found


def refusal(answer: Any) -> tuple[int, str, str]:
    return answer.status_code, answer.json()["type"], answer.json()["errors"][0]["expected"]


FORBIDDEN = (403, "urn:tba:problem:redteam-forbidden", "Bearer and the red-team key")


def test_to_post_one_takes_the_second_key_which_opens_everything_else_too(client: TestClient) -> None:
    assert refusal(client.post("/v1/tasks", json=ATTACK)) == FORBIDDEN
    assert client.post("/v1/tasks", json=ATTACK, headers=RED).status_code == 201
    assert client.post("/v1/tasks", json=TASK, headers=RED).status_code == 201
    assert client.get("/v1/tasks").status_code == 200


def test_its_texts_are_for_the_second_key_only(client: TestClient, trajectory_id: int) -> None:
    letter = client.get("/v1/dead-letters", headers=RED).json()["data"][0]["dead_letter_id"]
    paths = [f"/v1/trajectories/{trajectory_id}", "/v1/trajectories?task=attacks"]
    paths += [f"/v1/dead-letters/{letter}", "/v1/dead-letters?task=attacks"]
    assert [refusal(client.get(path)) for path in paths] == [FORBIDDEN] * 4
    assert [client.get(path, headers=RED).status_code for path in paths] == [200] * 4


def test_lists_of_everything_leave_its_texts_out(client: TestClient, trajectory_id: int) -> None:
    assert client.get("/v1/trajectories").json()["data"] == []
    (shown,) = client.get("/v1/trajectories", headers=RED).json()["data"]
    assert shown["trajectory_id"] == trajectory_id


def test_lists_of_dead_letters_leave_out_the_reasons_that_may_quote_it(
    client: TestClient, trajectory_id: int, url: str, run_id: str
) -> None:
    ordinary = client.post("/v1/tasks", json=TASK).json()["task_id"]
    engine = create_engine(url)
    with engine.begin() as connection:
        line = Line(connection, run_id)
        grading = line.issue(None, None, purpose="grade", request_id=1)
        for issue_id, reason in (
            (line.issue(ordinary, line.prompt_ids(ordinary)[0]), "of an ordinary task"),
            (grading, "of a grading without a task"),
            (None, "does not decode"),
            (2**40, "of an order that is not here"),
        ):
            line.dead_letter(issue_id, reason)
    engine.dispose()

    def reasons(query: str = "", **headers: str) -> list[str]:
        return [letter["reason"] for letter in client.get(f"/v1/dead-letters{query}", headers=headers).json()["data"]]

    assert reasons() == ["does not decode", "of a grading without a task", "of an ordinary task"]
    assert reasons("?reason=too+long") == []
    assert reasons("?reason=too+long", **RED) == ["too long"]
    assert len(reasons(**RED)) == 5


def test_where_there_is_no_such_task_every_reason_is_shown(client: TestClient, url: str, run_id: str) -> None:
    client.post("/v1/tasks", json=TASK)
    engine = create_engine(url)
    with engine.begin() as connection:
        Line(connection, run_id).dead_letter(2**40, "of an order that is not here")
    engine.dispose()
    (letter,) = client.get("/v1/dead-letters").json()["data"]
    assert letter["reason"] == "of an order that is not here"


def test_nobody_without_it_changes_what_becomes_of_it(client: TestClient, trajectory_id: int) -> None:
    letter = client.get("/v1/dead-letters", headers=RED).json()["data"][0]["dead_letter_id"]
    for method, path, status in (
        ("POST", "/v1/tasks/attacks/rescore", 202),
        ("POST", "/v1/tasks/attacks/pause", 200),
        ("POST", "/v1/tasks/attacks/resume", 200),
        ("POST", "/v1/tasks/attacks/evaluations", 409),  # no version is published
        ("POST", f"/v1/dead-letters/{letter}/replay", 202),
        ("DELETE", f"/v1/dead-letters/{letter}", 409),  # about to be replayed
        ("DELETE", "/v1/tasks/attacks", 204),
    ):
        assert refusal(client.request(method, path)) == FORBIDDEN
        assert client.request(method, path, headers=RED).status_code == status


def test_nobody_without_it_adds_to_it_or_grades_with_it(client: TestClient, trajectory_id: int) -> None:
    grading = {"task": "attacks", "prompt": {"text": "a", "reference": "b"}, "completions": ["x"], "wait_seconds": 0}
    for path, body in (
        ("/v1/tasks/attacks/prompts", [{"text": "a", "reference": "b"}]),
        ("/v1/tasks/attacks/seeds", [{"prompt": "0+1=", "answer": "b"}]),
        ("/v1/graders:run", grading),
    ):
        assert refusal(client.post(path, json=body)) == FORBIDDEN
        assert client.post(path, json=body, headers=RED).status_code != 403


def test_its_gradings_are_for_the_second_key_only(client: TestClient, trajectory_id: int) -> None:
    grading = {"task": "attacks", "prompt": {"text": "a", "reference": "b"}, "completions": ["x"], "wait_seconds": 0}
    location = client.post("/v1/graders:run", json=grading, headers=RED).headers["location"]
    assert client.get("/v1/gradings").json()["data"] == []
    assert len(client.get("/v1/gradings", headers=RED).json()["data"]) == 1
    assert refusal(client.get(location)) == FORBIDDEN
    assert client.get(location, headers=RED).status_code == 200


def test_a_dead_letter_of_an_unknown_order_may_be_one_of_its(
    client: TestClient, trajectory_id: int, url: str, run_id: str
) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        Line(connection, run_id).dead_letter(None, "does not decode")
    engine.dispose()
    newest = client.get("/v1/dead-letters").json()["data"][0]["dead_letter_id"]
    assert refusal(client.get(f"/v1/dead-letters/{newest}")) == FORBIDDEN


def test_a_server_without_the_second_key_says_so(url: str, run_id: str) -> None:
    with serving(url, run_id, api_key=SecretStr("plain")) as client:
        answer = client.post("/v1/tasks", json=ATTACK, headers={"Authorization": "Bearer plain"})
        assert refusal(answer)[2] == "the red-team key: start the API with TBA_API_REDTEAM_KEY"


def test_on_loopback_it_is_a_setting(url: str, run_id: str) -> None:
    with serving(url, run_id) as closed:
        expected = "permission for red-team tasks: start the API with TBA_ALLOW_REDTEAM=true"
        assert refusal(closed.post("/v1/tasks", json=ATTACK))[2] == expected
    with serving(url, run_id, allow_redteam=True) as opened:
        assert opened.post("/v1/tasks", json=ATTACK).status_code == 201
