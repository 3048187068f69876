"""Gradings, re-scorings, seeds and dead letters over the API: what it accepts, what it shows, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, func, insert, select, update
from starlette.testclient import TestClient

from services.buffer.request_tables import gradings, rescored, rescores, seeds
from services.buffer.tables import dead_letters, tasks
from tba_common.codec import encode
from tests.buffer.world import prompt
from tests.integration.api_client import TASK, Line, migrated_database, serving

pytestmark = pytest.mark.integration
HOSTILE = b"<script>\xff\x1b[2J"
GRADING: dict[str, Any] = {
    "reward": [{"scorer": "verifier", "options": {"match": "exact"}}],
    "prompt": {"text": "1+1=", "reference": "2"},
    "completions": ["2", "3"],
    "wait_seconds": 0,
}
RESULT = [
    {
        "reward": reward,
        "scores": [
            {"scorer": "verifier", "version": "1", "value": reward, "seconds": 0.1, "attempts": 1, "details": {}}
        ],
        "responses": [],
    }
    for reward in (1.0, 0.0)
]


@pytest.fixture(scope="module")
def url(postgres_url: str) -> str:
    return migrated_database(postgres_url)


@pytest.fixture
def client(url: str, run_id: str) -> Iterator[TestClient]:
    with serving(url, run_id, scorers=("verifier", "reward_model")) as client:
        yield client


@pytest.fixture
def task_id(client: TestClient) -> int:
    return int(client.post("/v1/tasks", json=TASK).json()["task_id"])


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def line(connection: Connection, run_id: str, task_id: int) -> Line:
    return Line(connection, run_id)


def fault(answer: Any) -> tuple[int, str, str, str]:
    (one,) = answer.json()["errors"]
    return answer.status_code, one["field"], one["expected"], one["got"]


def settle(connection: Connection, run_id: str, **values: Any) -> None:
    """The buffer brings a result back."""
    mine = update(gradings).where(gradings.c.run_id == run_id)
    connection.execute(mine.values(settled_at=func.now(), **values))


def test_a_reward_that_fits_is_told_with_its_scorers_and_nothing_is_stored(
    client: TestClient, connection: Connection, run_id: str
) -> None:
    reward = [{"scorer": "verifier"}, {"scorer": "reward_model", "weight": 0.5}]
    answer = client.post("/v1/graders:validate", json={"reward": reward})
    assert answer.status_code == 200
    assert answer.json()["scorers"] == ["verifier", "reward_model"]
    assert answer.json()["combination"]["rule"] == "sum"
    assert connection.scalar(select(func.count()).where(gradings.c.run_id == run_id)) == 0


@pytest.mark.parametrize(
    ("body", "field", "expected"),
    [
        ({}, "/task", "exactly one of task and reward"),
        ({"reward": [{"scorer": "judge"}]}, "/reward/0/scorer", "one of verifier, reward_model"),
        ({"reward": [{"scorer": "verifier"}, {"scorer": "verifier"}]}, "/reward", None),
        ({"reward": [{"scorer": "verifier", "at_least": 1}]}, "", "only with rule gate, got sum"),
        ({"reward": [{"scorer": "verifier"}], "prompt": {"text": "a"}}, "/prompt/reference", None),
    ],
)
def test_a_reward_that_does_not_fit_is_named(
    client: TestClient, body: dict[str, Any], field: str, expected: str | None
) -> None:
    status, where, told, _ = fault(client.post("/v1/graders:validate", json=body))
    assert (status, where) == (422, field)
    assert expected is None or told == expected


def test_a_grading_that_takes_too_long_says_where_to_ask_and_a_retry_waits_for_the_same(
    client: TestClient, connection: Connection, run_id: str
) -> None:
    headers = {"Idempotency-Key": "grade-1"}
    early = client.post("/v1/graders:run", json=GRADING, headers=headers)
    assert early.status_code == 504
    assert early.json()["type"] == "urn:tba:problem:grading-not-ready"
    location = early.headers["location"]
    assert location in early.json()["detail"]
    assert client.get(location).json()["state"] == "pending"
    settle(connection, run_id, result=RESULT)
    late = client.post("/v1/graders:run", json=GRADING, headers=headers)
    assert late.status_code == 200
    assert late.headers["location"] == location
    assert [one["reward"] for one in late.json()["completions"]] == [1.0, 0.0]
    assert client.get(location).json() == late.json()
    assert connection.scalar(select(func.count()).where(gradings.c.run_id == run_id)) == 1


def test_gradings_are_listed_newest_first_with_their_rewards(
    client: TestClient, connection: Connection, run_id: str, task_id: int
) -> None:
    client.post("/v1/graders:run", json=GRADING)
    settle(connection, run_id, result=RESULT)
    hostile = {"task": "addition", "prompt": {"text": "<script>", "reference": "2"}, "completions": ["2"]}
    client.post("/v1/graders:run", json=hostile | {"wait_seconds": 0})
    newest = client.get("/v1/gradings?limit=1").json()
    (pending,) = newest["data"]
    assert (pending["task"], pending["prompt"], pending["state"]) == ("addition", "<script>", "pending")
    assert newest["has_more"]
    (done,) = client.get("/v1/gradings", params={"after": newest["next_after"]}).json()["data"]
    assert (done["task"], done["rewards"], done["state"]) == (None, [1.0, 0.0], "done")
    assert set(done) == {"grading_id", "state", "task", "prompt", "rewards", "fault", "created_at", "settled_at"}


def test_a_grading_that_failed_says_why(client: TestClient, connection: Connection, run_id: str) -> None:
    headers = {"Idempotency-Key": "grade-2"}
    client.post("/v1/graders:run", json=GRADING, headers=headers)
    settle(connection, run_id, fault="the scorer crashed")
    failed = client.post("/v1/graders:run", json=GRADING, headers=headers)
    assert (failed.status_code, failed.json()["detail"]) == (424, "the scorer crashed")
    shown = client.get(failed.headers["location"]).json()
    assert (shown["state"], shown["fault"], shown["completions"]) == ("failed", "the scorer crashed", [])


def test_a_task_s_grading_has_its_template_and_its_reward(
    client: TestClient, connection: Connection, run_id: str
) -> None:
    client.post("/v1/tasks", json=TASK | {"template": "Sum: {text}", "combination": {"min_tokens": 3}})
    body = {"task": "addition"} | {name: GRADING[name] for name in ("prompt", "completions", "wait_seconds")}
    assert client.post("/v1/graders:run", json=body).status_code == 504
    asked = connection.scalar(select(gradings.c.request).where(gradings.c.run_id == run_id))
    assert asked is not None
    assert (asked["text"], asked["reward"][0]["scorer"]) == ("Sum: 1+1=", "verifier")
    assert client.post("/v1/graders:run", json=body | {"task": "other"}).status_code == 404


def test_what_is_not_there_is_named(client: TestClient) -> None:
    for path in ("/v1/gradings/1000000", "/v1/rescores/1000000", "/v1/dead-letters/1000000"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["errors"][0]["got"]) == (404, "1000000")


def test_a_re_scoring_adopts_a_new_reward_and_there_is_one_at_a_time(
    client: TestClient, line: Line, task_id: int
) -> None:
    reward = [{"scorer": "verifier", "weight": 2.0, "options": {"match": "last_number"}}]
    body = {"reward": reward, "requested_by": "ada", "min_reward": 0.5, "limit": 10}
    asked = client.post("/v1/tasks/addition/rescore", json=body)
    assert asked.status_code == 202
    view = asked.json()
    assert (view["state"], view["total"], view["requested_by"]) == ("waiting", None, "ada")
    assert client.get(asked.headers["location"]).json() == view
    assert client.get("/v1/tasks/addition").json()["spec"]["reward"][0]["weight"] == 2.0
    again = client.post("/v1/tasks/addition/rescore")
    assert (again.status_code, again.json()["type"]) == (409, "urn:tba:problem:rescore-exists")
    assert client.get("/v1/tasks/addition/rescores").json()["data"] == [view]


def test_a_new_reward_must_fit_the_task_s_prompts_and_the_deployment(client: TestClient, task_id: int) -> None:
    unknown = client.post("/v1/tasks/addition/rescore", json={"reward": [{"scorer": "judge"}]})
    assert fault(unknown)[:2] == (422, "/reward/0/scorer")
    gym = [{"scorer": "verifier", "options": {"match": "reasoning_gym"}}]
    status, field, expected, _ = fault(client.post("/v1/tasks/addition/rescore", json={"reward": gym}))
    assert (status, field) == (422, "/reward")
    assert "needs the problem" in expected
    assert client.get("/v1/tasks/addition").json()["spec"]["reward"][0]["options"] == {"match": "exact"}


def test_the_progress_of_a_re_scoring_and_its_audit_are_told(
    client: TestClient, line: Line, connection: Connection, task_id: int
) -> None:
    prompt_id = line.prompt_ids(task_id)[0]
    issue_id = line.issue(task_id, prompt_id, state="settled", stored=2)
    ids = [line.trajectory(task_id, prompt_id, issue_id=issue_id) for _ in range(3)]
    rescore_id = client.post("/v1/tasks/addition/rescore", json={"requested_by": "ada"}).json()["rescore_id"]
    connection.execute(update(rescores).where(rescores.c.rescore_id == rescore_id).values(total=3, sent=3))
    old, new = ([{"scorer": "verifier", "version": version}] for version in ("1", "2"))
    common = {"rescore_id": rescore_id, "issue_id": issue_id, "old_reward": 1.0, "old_scores": old}
    done = {"new_reward": 3.0, "new_scores": new, "settled_at": func.now()}
    connection.execute(insert(rescored).values({**common, **done, "trajectory_id": ids[0]}))
    connection.execute(insert(rescored).values({**common, **done, "trajectory_id": ids[1], "new_reward": 1.0}))
    failed = {"trajectory_id": ids[2], "fault": "no answer", "settled_at": func.now()}
    connection.execute(insert(rescored).values({**common, **failed}))
    view = client.get(f"/v1/rescores/{rescore_id}").json()
    assert (view["state"], view["total"], view["rescored"], view["changed"], view["failed"]) == ("running", 3, 2, 1, 1)
    assert (view["mean_old_reward"], view["mean_new_reward"]) == (1.0, 2.0)
    (audit,) = client.get(f"/v1/trajectories/{ids[0]}").json()["rescores"]
    assert (audit["requested_by"], audit["old_reward"], audit["new_reward"]) == ("ada", 1.0, 3.0)
    assert (audit["old_scorers"], audit["new_scorers"]) == ({"verifier": "1"}, {"verifier": "2"})


def test_seeds_are_taken_for_the_prompts_they_name(
    client: TestClient, connection: Connection, line: Line, task_id: int
) -> None:
    client.post("/v1/tasks/addition/prompts", json=[{"text": "5+5=", "reference": "10", "key": "k"}])
    specs = [{"prompt": "1+1=", "answer": "2"}, {"key": "k", "answer": "10"}]
    answer = client.post("/v1/tasks/addition/seeds", json=specs)
    assert (answer.status_code, answer.json()) == (202, {"task": "addition", "accepted": 2})
    rows = connection.execute(select(seeds).where(seeds.c.task_id == task_id).order_by(seeds.c.seed_id)).all()
    prompt_ids = line.prompt_ids(task_id)
    assert [(row.prompt_id, row.text) for row in rows] == [(prompt_ids[1], "2"), (prompt_ids[3], "10")]


@pytest.mark.parametrize(
    ("seed", "field"),
    [
        ({"answer": "2"}, "/0/prompt"),  # three prompts: which one?
        ({"answer": "2", "prompt": "nobody's"}, "/0/prompt"),
        ({"answer": "2", "prompt": "9+9="}, "/0/prompt"),  # held out
        ({"answer": "2", "key": "nobody's"}, "/0/key"),
        ({"answer": "2", "key": "k", "prompt": "1+1="}, "/0/prompt"),
    ],
)
def test_a_seed_of_no_training_prompt_is_refused(
    client: TestClient, connection: Connection, task_id: int, seed: dict[str, str], field: str
) -> None:
    assert fault(client.post("/v1/tasks/addition/seeds", json=[seed]))[:2] == (422, field)
    assert connection.scalar(select(func.count()).where(seeds.c.task_id == task_id)) == 0


def test_seeds_need_no_prompt_where_the_task_has_one(client: TestClient) -> None:
    client.post("/v1/tasks", json=TASK | {"prompts": TASK["prompts"][:1]})
    lines = '{"answer": "1"}\n{"answer": "one"}\n'
    headers = {"Content-Type": "application/x-ndjson"}
    assert client.post("/v1/tasks/addition/seeds", content=lines, headers=headers).json()["accepted"] == 2


def letter_of(line: Line, connection: Connection, issue_id: int | None, **columns: Any) -> int:
    row = {
        **{"run_id": line.run_id, "issue_id": issue_id, "service": "tba-generator", "reason": "too long"},
        **{"topic": "tba.prompts", "partition": 2, "offset": 5, "schema_header": "prompt/1", "body": HOSTILE},
    }
    statement = insert(dead_letters).values(row | columns).returning(dead_letters.c.dead_letter_id)
    return int(connection.execute(statement).scalar_one())


def test_dead_letters_can_be_found_by_service_task_and_reason(
    client: TestClient, line: Line, connection: Connection, task_id: int
) -> None:
    issue_id = line.issue(task_id, line.prompt_ids(task_id)[0], state="settled", dead_lettered=2)
    first = letter_of(line, connection, issue_id)
    second = letter_of(line, connection, None, service="tba-reward-verifier", reason="100% bad")

    def found(**query: Any) -> list[int]:
        data = client.get("/v1/dead-letters", params=query).json()["data"]
        return [one["dead_letter_id"] for one in data]

    assert found() == [second, first]
    assert found(service="tba-generator") == found(task="addition") == found(reason="TOO L") == [first]
    assert found(reason="0% b") == [second]
    assert found(reason="_") == []
    page = client.get("/v1/dead-letters", params={"limit": 1}).json()
    assert found(limit=1, after=page["next_after"]) == [first]
    shown = page["data"][0] | {"task": None, "purpose": None, "replay": "none"}
    assert page["data"][0] == shown


def test_a_body_that_does_not_decode_is_escaped_text(client: TestClient, line: Line, connection: Connection) -> None:
    one = client.get(f"/v1/dead-letters/{letter_of(line, connection, None)}").json()
    assert (one["message"], one["body"], one["size_bytes"]) == (None, "<script>\\xff\x1b[2J", len(HOSTILE))
    assert one["undecodable"].startswith("prompt/1 does not decode")


def test_a_body_that_decodes_is_shown_as_what_it_is(client: TestClient, line: Line, connection: Connection) -> None:
    schema, body = encode(prompt(text="2+3=\x1b"))
    one = client.get(f"/v1/dead-letters/{letter_of(line, connection, None, schema_header=schema, body=body)}").json()
    assert (one["message"]["text"], one["body"], one["undecodable"]) == ("2+3=\x1b", None, None)


def test_a_replay_is_asked_for_once_and_cannot_be_dropped_meanwhile(
    client: TestClient, line: Line, connection: Connection, task_id: int
) -> None:
    issue_id = line.issue(task_id, line.prompt_ids(task_id)[0], state="settled", dead_lettered=2)
    letter = letter_of(line, connection, issue_id)
    replies = [client.post(f"/v1/dead-letters/{letter}/replay") for _ in range(2)]
    assert [(reply.status_code, reply.json()["replay"]) for reply in replies] == [(202, "asked")] * 2
    refused = client.delete(f"/v1/dead-letters/{letter}")
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:tba:problem:not-replayable")
    mine = update(dead_letters).where(dead_letters.c.dead_letter_id == letter)
    connection.execute(mine.values(replayed_at=func.now()))
    assert client.post(f"/v1/dead-letters/{letter}/replay").json()["replay"] == "sent"
    assert client.delete(f"/v1/dead-letters/{letter}").status_code == 204
    assert client.get(f"/v1/dead-letters/{letter}").status_code == 404


def test_a_letter_of_an_order_that_ended_otherwise_or_was_cut_cannot_be_replayed(
    client: TestClient, line: Line, connection: Connection, task_id: int
) -> None:
    issue_id = line.issue(task_id, line.prompt_ids(task_id)[0], state="settled", dead_lettered=1, stored=1)
    partly = client.post(f"/v1/dead-letters/{letter_of(line, connection, issue_id)}/replay")
    assert partly.status_code == 409
    assert "1 stored" in partly.json()["detail"]
    cut = letter_of(line, connection, None, body=b"x" * (1 << 20))
    assert "was cut" in client.post(f"/v1/dead-letters/{cut}/replay").json()["detail"]


def test_evaluations_tell_the_means_of_scores_and_details_and_the_distance_to_the_reference(
    client: TestClient, line: Line, connection: Connection, task_id: int
) -> None:
    from services.buffer.tables import evaluations

    (held_out,) = line.prompt_ids(task_id, "eval")
    issue_id = line.issue(task_id, held_out, purpose="eval", policy_version=0, completions=4, state="settled", stored=4)
    for index, (reward, win, reference) in enumerate([(1.0, 1.0, -3.0), (0.0, 0.5, -4.0), (0, 0, -5), (0, 0.5, -6)]):
        scores = [
            {"scorer": "reward_model.gold", "version": "1", "value": reward, "seconds": 0.1, "details": {"win": win}},
            {"scorer": "reference", "version": "1", "value": reference, "seconds": 0.1},
        ]
        row = {"issue_id": issue_id, "index": index, "run_id": line.run_id, "task_id": task_id, "prompt_id": held_out}
        answer = {"policy_version": 0, "reward": reward, "text": "2", "scores": scores, "policy_logprob": -2.0}
        connection.execute(insert(evaluations).values(row | answer))
    (one,) = client.get("/v1/evaluations").json()["data"]
    assert one["scores"] == {"reference": -4.5, "reward_model.gold": 0.25, "reward_model.gold.win": 0.5}
    assert one["kl"] == 2.5
    assert one["pass_at"] == {"1": 0.25, "2": 0.5, "4": 1.0}
    assert one["accuracy"] == 0.25


def test_a_trajectory_tells_which_version_wrote_which_tokens(client: TestClient, line: Line, task_id: int) -> None:
    prompt_id = line.prompt_ids(task_id)[0]
    issue_id = line.issue(task_id, prompt_id, state="settled", stored=2)
    swapped = line.trajectory(task_id, prompt_id, issue_id=issue_id, policy_version=3, spans=[[3, 1], [4, 1]])
    plain = line.trajectory(task_id, prompt_id, issue_id=issue_id, policy_version=5)
    spans = [client.get(f"/v1/trajectories/{one}").json()["spans"] for one in (swapped, plain)]
    assert spans[0] == [{"policy_version": 3, "tokens": 1}, {"policy_version": 4, "tokens": 1}]
    assert spans[1] == [{"policy_version": 5, "tokens": 2}]


def test_a_deleted_task_keeps_its_rows(client: TestClient, connection: Connection, task_id: int) -> None:
    client.post("/v1/tasks/addition/rescore")
    client.delete("/v1/tasks/addition")
    assert client.post("/v1/tasks/addition/rescore").status_code == 404
    assert connection.scalar(select(tasks.c.state).where(tasks.c.task_id == task_id)) == "deleted"
