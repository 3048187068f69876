from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine
from starlette.testclient import TestClient

from tests.integration.api_client import TASK, Line, migrated_database, serving

pytestmark = pytest.mark.integration
NAME = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
HOSTILE = "<script>alert(1)</script>\u202e\x1b[31m\"'&"


@pytest.fixture(scope="module")
def url(postgres_url: str) -> str:
    return migrated_database(postgres_url)


@pytest.fixture
def client(url: str, run_id: str) -> Iterator[TestClient]:
    with serving(url, run_id) as client:
        yield client


@pytest.fixture
def task_id(client: TestClient) -> int:
    return int(client.post("/v1/tasks", json=TASK).json()["task_id"])


@pytest.fixture
def line(url: str, run_id: str, task_id: int) -> Iterator[Line]:
    """Writes rows of the run; each is there at once."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield Line(connection, run_id)
    engine.dispose()


def listed(client: TestClient, path: str, **parameters: Any) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = client.get(path, params=parameters).json()["data"]
    return data


def test_before_anything_happened_every_read_answers_with_nothing(client: TestClient, run_id: str) -> None:
    status = client.get("/v1/status").json()
    assert (status["run_id"], status["policy_version"], status["step"]) == (run_id, None, 0)
    assert status["ledger"]["balances"] is True
    assert status["waiting_for"] == "The buffer service has not started this run yet."
    for path in ("/v1/tasks", "/v1/steps", "/v1/evaluations", "/v1/trajectories"):
        assert client.get(path).json() == {"data": [], "has_more": False, "next_after": None}


def test_the_status_tells_what_the_tables_hold(client: TestClient, line: Line, task_id: int) -> None:
    first, second, _ = line.prompt_ids(task_id)
    line.buffer_says(policy_version=2, trajectories=11, ready_prompts=3, blocked="ratio", steps_per_minute=30)
    line.issue(task_id, first, state="settled", stored=1, duplicates=1)
    line.issue(task_id, second)
    line.step(1, staleness={0: 2})
    line.step(2, staleness={0: 1, 1: 3})
    status = client.get("/v1/status").json()
    assert (status["policy_version"], status["step"]) == (2, 2)
    assert (status["state"], status["tasks_active"]) == ("waiting", 1)
    assert status["waiting_for"] == "The learner is ahead of the generators: the buffer waits for new trajectories."
    assert status["staleness"] == {"mean_versions": 0.5, "histogram": {"0": 3, "1": 3}}
    assert status["rates"] == {"trajectories_per_minute": 0, "steps_per_minute": 30}
    assert status["queues"]["prompts_in_flight"] == 1
    assert (status["buffer"]["trajectories"], status["buffer"]["ready_prompts"]) == (11, 3)
    assert status["ledger"] == {
        "issued": 4,
        "stored": 1,
        "duplicates": 1,
        "dead_lettered": 0,
        "expired": 0,
        "in_flight": 2,
        "balances": True,
    }


def test_the_status_says_why_nothing_comes_back_when_every_order_is_dead_lettered(
    client: TestClient, line: Line, task_id: int
) -> None:
    first, second, _ = line.prompt_ids(task_id)
    line.buffer_says(policy_version=2, trajectories=11, blocked="not_ready")
    line.dead_letter(line.issue(task_id, first, state="settled", dead_lettered=2), "a prompt of 900 tokens")
    status = client.get("/v1/status").json()
    assert status["state"] == "stalled"
    assert status["waiting_for"].endswith("the last one because: a prompt of 900 tokens")
    line.issue(task_id, second, state="settled", stored=2)
    assert client.get("/v1/status").json()["state"] == "waiting"


def test_a_task_tells_how_far_it_has_come(client: TestClient, line: Line, task_id: int) -> None:
    first, second, _ = line.prompt_ids(task_id)
    for prompt_id, reward in ((first, 1.0), (second, 0.0)):
        issue_id = line.issue(task_id, prompt_id, state="settled", stored=1, duplicates=1)
        line.trajectory(task_id, prompt_id, issue_id=issue_id, reward=reward)
    line.evaluation(task_id, line.prompt_ids(task_id, "eval")[0], policy_version=0, reward=1.0)
    progress = client.get("/v1/tasks/addition").json()["progress"]
    assert progress["issues"] == 2
    assert progress["trajectories"] == 2
    assert progress["recent_mean_reward"] == 0.5


def test_the_steps_can_be_followed(client: TestClient, line: Line) -> None:
    for number in (1, 2, 3):
        line.step(number, staleness={0: 4})
    first = client.get("/v1/steps", params={"limit": 2}).json()
    assert [step["step"] for step in first["data"]] == [1, 2]
    assert (first["has_more"], first["next_after"]) == (True, "2")
    assert [step["step"] for step in listed(client, "/v1/steps", after=2)] == [3]
    assert listed(client, "/v1/steps", after=3) == []
    assert first["data"][0]["staleness_versions"] == {"0": 4}


def test_evaluations_are_summed_by_task_and_version(client: TestClient, line: Line, task_id: int) -> None:
    (held_out,) = line.prompt_ids(task_id, "eval")
    for version, reward in ((0, 0.0), (0, 1.0), (3, 0.5), (3, None)):
        line.evaluation(task_id, held_out, policy_version=version, reward=reward)
    both = {"task": "addition", "n_lost": 0, "n_expected": 2, "scores": {}, "kl": None}
    assert listed(client, "/v1/evaluations") == [
        both | {"policy_version": 0, "n": 2, "mean_reward": 0.5, "accuracy": 0.5, "pass_at": {"1": 0.5, "2": 1.0}},
        both | {"policy_version": 3, "n": 1, "mean_reward": 0.5, "accuracy": 0.0, "pass_at": {"1": 0.0}},
    ]
    page = client.get("/v1/evaluations", params={"limit": 1}).json()
    assert page["has_more"]
    (rest,) = listed(client, "/v1/evaluations", limit=1, after=page["next_after"])
    assert rest["policy_version"] == 3
    assert listed(client, "/v1/evaluations", task="another") == []


def test_trajectories_come_newest_first_page_by_page(client: TestClient, line: Line, task_id: int) -> None:
    prompt_id = line.prompt_ids(task_id)[0]
    issue_id = line.issue(task_id, prompt_id)
    ids = [line.trajectory(task_id, prompt_id, issue_id=issue_id) for _ in range(5)]
    seen: list[int] = []
    after = None
    while True:
        page = client.get("/v1/trajectories", params={"limit": 2} | ({"after": after} if after else {})).json()
        seen += [one["trajectory_id"] for one in page["data"]]
        after = page["next_after"]
        if not page["has_more"]:
            break
    assert seen == ids[::-1]


def test_trajectories_can_be_filtered(client: TestClient, line: Line, task_id: int) -> None:
    prompt_id = line.prompt_ids(task_id)[0]
    issue_id = line.issue(task_id, prompt_id)
    for version, reward in ((0, 0.0), (1, 0.5), (1, 1.0)):
        line.trajectory(task_id, prompt_id, issue_id=issue_id, policy_version=version, reward=reward)

    def rewards(**filters: Any) -> list[float]:
        return [one["reward"] for one in listed(client, "/v1/trajectories", **filters)]

    assert rewards() == [1.0, 0.5, 0.0]
    assert rewards(policy_version=1) == [1.0, 0.5]
    assert rewards(min_reward=0.5) == [1.0, 0.5]
    assert rewards(max_reward=0.5) == [0.5, 0.0]
    assert rewards(min_reward=0.1, max_reward=0.9, task="addition") == [0.5]
    assert rewards(task="another") == []


def test_a_trajectory_tells_its_lineage(client: TestClient, line: Line, task_id: int) -> None:
    prompt_id = line.prompt_ids(task_id)[0]
    issue_id = line.issue(task_id, prompt_id, attempt=2)
    trajectory_id = line.trajectory(task_id, prompt_id, issue_id=issue_id)
    line.batch(1, step=1, trajectory_id=trajectory_id)
    line.batch(2, step=None, trajectory_id=trajectory_id)
    one = client.get(f"/v1/trajectories/{trajectory_id}").json()
    assert (one["task"], one["prompt"], one["reference"]) == ("addition", "0+1=", "1")
    assert (one["issue_id"], one["attempt"]) == (issue_id, 2)
    assert (one["token_ids"], one["logprobs"]) == ([5, 1], [-0.5, None])
    (score,) = one["scores"]
    assert (score["scorer"], score["version"], score["value"], score["attempts"]) == ("verifier", "1", 1.0, 1)
    assert [(draw["batch_id"], draw["step"], draw["draw_logprob"]) for draw in one["draws"]] == [
        (1, 1, -1.5),
        (2, None, -1.5),
    ]


def test_what_a_model_wrote_is_never_more_than_a_json_string(client: TestClient, line: Line, task_id: int) -> None:
    prompt_id = line.prompt_ids(task_id)[0]
    trajectory_id = line.trajectory(task_id, prompt_id, issue_id=line.issue(task_id, prompt_id), text=HOSTILE)
    for path in ("/v1/trajectories", f"/v1/trajectories/{trajectory_id}"):
        answer = client.get(path)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert listed(client, "/v1/trajectories")[0]["text"] == HOSTILE


@pytest.mark.parametrize(
    ("path", "field", "expected"),
    [
        ("/v1/trajectories?limit=0", "query:limit", "greater than or equal to 1"),
        ("/v1/trajectories?limit=201", "query:limit", "less than or equal to 200"),
        ("/v1/trajectories?limit=ten", "query:limit", "a valid integer, unable to parse string as an integer"),
        ("/v1/trajectories?min_reward=nan", "query:min_reward", "a finite number"),
        ("/v1/trajectories?rewrad=1", "query:rewrad", "no parameter of this name"),
        ("/v1/trajectories?task=%00", "query:task", f"match pattern '{NAME}'"),
        ("/v1/evaluations?task=%00", "query:task", f"match pattern '{NAME}'"),
        ("/v1/steps?after=99999999999", "query:after", "less than 2147483648"),
        ("/v1/evaluations?after=x", "query:after", "match pattern '^[0-9]{1,9}\\.[0-9]{1,18}$'"),
        ("/v1/tasks/UPPER", "path:name", f"match pattern '{NAME}'"),
        ("/v1/trajectories/abc", "path:trajectory_id", "a valid integer, unable to parse string as an integer"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(client: TestClient, path: str, field: str, expected: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    (fault,) = answer.json()["errors"]
    assert (fault["field"], fault["expected"]) == (field, expected)


def test_what_is_not_there_is_named(client: TestClient) -> None:
    nothing = client.get("/v1/trajectories/9223372036854775807")
    assert (nothing.status_code, nothing.json()["errors"][0]["expected"]) == (404, "the id of a trajectory")
    nowhere = client.get("/v1/runs")
    assert (nowhere.status_code, nowhere.json()["errors"][0]["got"]) == (404, '"/v1/runs"')


def test_a_method_that_a_path_does_not_know_is_refused_with_those_it_knows(client: TestClient) -> None:
    answer = client.put("/v1/tasks/addition")
    assert answer.status_code == 405
    assert answer.json()["errors"][0]["field"] == "method"
    assert set(answer.headers["allow"].split(", ")) == {"GET", "DELETE"}
    assert answer.json()["errors"][0]["got"] == '"PUT"'


def test_it_is_ready_on_the_newest_schema_only(client: TestClient, database: str, run_id: str) -> None:
    assert client.get("/readyz").json() == {"status": "ready"}
    with serving(database, run_id) as unmigrated:
        for path in ("/readyz", "/v1/status"):
            answer = unmigrated.get(path)
            assert answer.status_code == 503
            assert answer.json()["type"] == "urn:tba:problem:schema-differs"
            assert "python -m services.buffer migrate" in answer.json()["detail"]
        assert unmigrated.get("/healthz").json() == {"status": "alive"}


def test_metrics_and_version_answer(client: TestClient, run_id: str) -> None:
    metrics = client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=1.0.0")
    assert "python_info" in metrics.text
    assert client.get("/version").json()["run_id"] == run_id
