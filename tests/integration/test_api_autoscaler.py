"""The autoscaler's window on a real database: signals from rows, decisions as an audit, a person's override."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine
from starlette.testclient import TestClient

from services.buffer.signals import StepTime, wait_ratio
from tests.integration.api_client import TASK, Line, migrated_database, serving

pytestmark = pytest.mark.integration
DECISION: dict[str, Any] = {
    "desired": 3,
    "replicas": 2,
    "ready": 2,
    "reason": "starving",
    "sentence": "the learner waits 20% of the time; 3 needed",
    "applied": True,
    "decided_by": "one",
}
SAID: dict[str, Any] = {
    "blocked": "ratio",
    "credits": 7,
    "in_flight": {"1": 5, "2": 4},
    "undrawn_groups": 8,
    "inserts": 1_000,
    "samples": 1_744,
    "staleness": {"0": 3, "2": 1},
    "trajectories_per_minute": 120,
    "groups_per_batch": 4,
    "samples_per_insert": 2.0,
}


@pytest.fixture(scope="module")
def url(postgres_url: str) -> str:
    return migrated_database(postgres_url)


@pytest.fixture
def client(url: str, run_id: str) -> Iterator[TestClient]:
    with serving(url, run_id) as client:
        yield client


@pytest.fixture
def line(url: str, run_id: str) -> Iterator[Line]:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield Line(connection, run_id)
    engine.dispose()


def override(client: TestClient, replicas: int, seconds: float) -> Any:
    until = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
    return client.post("/v1/autoscaler/override", json={"replicas": replicas, "until": until})


def test_before_anything_happened_there_is_nothing_to_decide_from(client: TestClient) -> None:
    shown = client.get("/v1/autoscaler").json()
    assert shown == {"signals": None, "override": None, "decision": None, "decisions": []}
    refused = client.get("/v1/autoscaler/desired")
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:tba:problem:no-decision")
    assert refused.json()["detail"] == "expected a decision within 120 s, got none yet"


def test_signals_say_what_the_rows_hold(client: TestClient, line: Line) -> None:
    task_id = client.post("/v1/tasks", json=TASK).json()["task_id"]
    line.buffer_says(policy_version=2, **SAID)
    line.step(1, staleness={0: 128})
    for prompt_id in line.prompt_ids(task_id)[:2]:
        line.issue(task_id, prompt_id, completions=8)
    signals = client.get("/v1/autoscaler").json()["signals"]
    assert 0 <= signals.pop("age_seconds") < 60
    assert 0 <= signals.pop("wait_ratio") <= 1
    assert signals == {
        "tasks_active": 1,
        "step_seconds": 0.5,
        "batch_trajectories": 128,
        "samples_per_insert": 2.0,
        "trajectories_per_second": 2.0,
        "fresh_steps": 2.0,
        "stock_steps": 0.0,  # it is blocked
        "staleness_versions": 0.5,
        "admission_capacity": 16,
        "in_flight_prompts": 2,
        "in_flight_completions": 16,
    }


def test_a_learner_that_may_go_on_has_a_stock(client: TestClient, line: Line) -> None:
    client.post("/v1/tasks", json=TASK)
    line.buffer_says(policy_version=2, **SAID | {"blocked": None})
    line.step(1, staleness={0: 128})
    assert client.get("/v1/autoscaler").json()["signals"]["stock_steps"] == 2.0  # (2 * 1000 - 1744) / 128


def test_a_learner_that_never_trained_for_want_of_data_waits_all_the_time(client: TestClient, line: Line) -> None:
    client.post("/v1/tasks", json=TASK)
    line.buffer_says(policy_version=0, **SAID | {"blocked": "min_size"})
    assert client.get("/v1/autoscaler").json()["signals"]["wait_ratio"] == 1.0
    line.buffer_says(policy_version=0, **SAID | {"blocked": None})
    assert client.get("/v1/autoscaler").json()["signals"]["wait_ratio"] is None


def test_a_decision_is_kept_with_its_inputs_and_one_that_says_the_same_extends_it(client: TestClient) -> None:
    first = client.post("/v1/autoscaler/decisions", json=DECISION)
    assert first.status_code == 201
    again = client.post("/v1/autoscaler/decisions", json=DECISION | {"ready": 1}).json()
    assert (again["created_at"], again["ready"]) == (first.json()["created_at"], 1)
    client.post("/v1/autoscaler/decisions", json=DECISION | {"desired": 2, "reason": "surplus"})
    shown = client.get("/v1/autoscaler").json()
    assert [decision["reason"] for decision in shown["decisions"]] == ["surplus", "starving"]
    assert shown["decision"] == shown["decisions"][0]
    assert client.get("/v1/autoscaler/desired").json() == {"desired": 2}


def test_a_person_s_number_holds_until_its_time_or_until_it_is_cleared(client: TestClient) -> None:
    client.post("/v1/autoscaler/decisions", json=DECISION)
    assert override(client, 6, 60).json()["replicas"] == 6
    assert override(client, 5, 60).json()["replicas"] == 5
    assert client.get("/v1/autoscaler").json()["override"]["replicas"] == 5
    assert client.get("/v1/autoscaler/desired").json() == {"desired": 5}
    assert client.delete("/v1/autoscaler/override").status_code == 204
    assert client.get("/v1/autoscaler").json()["override"] is None
    assert client.get("/v1/autoscaler/desired").json() == {"desired": 3}


def test_an_override_that_is_over_or_has_no_time_zone_is_refused(client: TestClient) -> None:
    late = override(client, 2, -1)
    assert (late.status_code, late.json()["errors"][0]["field"]) == (422, "/until")
    naive = client.post("/v1/autoscaler/override", json={"replicas": 2, "until": "2099-01-01T00:00:00"})
    assert naive.status_code == 422


def test_the_wait_ratio_is_the_share_of_the_last_minutes_without_computing() -> None:
    assert wait_ratio([], 100.0) is None
    busy = [StepTime(ended_at=float(at), seconds=10.0) for at in range(10, 201, 10)]
    assert wait_ratio(busy, 200.0) == pytest.approx(0.0)
    assert wait_ratio(busy, 205.0) == pytest.approx(0.0)  # it may be computing
    assert wait_ratio(busy, 240.0) == pytest.approx(30 / 120)
    half = [StepTime(ended_at=float(at), seconds=5.0) for at in range(10, 201, 10)]
    assert wait_ratio(half, 200.0) == pytest.approx(0.5)
    assert wait_ratio([StepTime(100.0, 100.0)], 100.0) == pytest.approx(0.0)
