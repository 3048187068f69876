"""The client: typed answers, readable refusals, and retries that do nothing twice."""

from __future__ import annotations

import re

import pytest

from tba_cli.client import PROMPTS_AT_ONCE, Client
from tba_cli.errors import ApiError, BadInput, TbaError, Unavailable
from tba_common.tasks import PromptSpec, ScorerTerm, Task
from tests.cli.fake_api import STATUS, TASK, FakeApi, Reply, listing, problem, step

ADDITION = Task(name="addition", reward=(ScorerTerm(scorer="verifier"),))


def prompts(count: int) -> list[PromptSpec]:
    return [PromptSpec(text=f"{i}+1=", reference=str(i + 1)) for i in range(count)]


def posted(count: int) -> dict[str, object]:
    return {"data": [{"prompt_id": i, "split": "train", "created": True} for i in range(count)], "created": count}


def test_a_status_with_a_field_of_tomorrow_is_read(api: FakeApi) -> None:
    api.on("GET /v1/status", STATUS)
    with Client(api.url) as client:
        status = client.status()
    assert (status.step, status.policy_version, status.ledger.balances) == (7, 3, True)
    assert status.staleness.histogram == {0: 8, 1: 8}


def test_the_key_travels_as_a_bearer_token(api: FakeApi) -> None:
    api.on("GET /v1/status", STATUS)
    with Client(api.url, "secret") as client:
        client.status()
    assert api.asked[0].headers["Authorization"] == "Bearer secret"


def test_another_server_at_the_address_is_told_as_such(api: FakeApi) -> None:
    api.on("GET /v1/status", Reply("<html>", media_type="text/html; charset=utf-8"))
    said = f"expected JSON, got text/html; charset=utf-8: is {api.url} the address of the API?"
    with Client(api.url) as client, pytest.raises(TbaError, match=re.escape(said)):
        client.status()


def test_what_is_no_url_is_told_as_such() -> None:
    with pytest.raises(BadInput, match=r"expected the URL of an API .*, got 'http://127\.0\.0\.1:port'"):
        Client("http://127.0.0.1:port")


def test_a_list_is_read_to_its_last_page(api: FakeApi) -> None:
    api.on("GET /v1/steps", listing(step(1), step(2), next_after="2"), listing(step(3)))
    with Client(api.url) as client:
        assert [found.step for found in client.steps()] == [1, 2, 3]
    assert [asked.query["after"] for asked in api.asked] == ["-1", "2"]


def test_a_change_that_was_cut_off_is_retried_under_the_same_idempotency_key(api: FakeApi) -> None:
    api.on("POST /v1/tasks", Reply(hang_up=True), problem(503, code="database-unavailable"), Reply(TASK, 201))
    pauses: list[float] = []
    with Client(api.url, sleep=pauses.append) as client:
        assert client.post_task(ADDITION, prompts(2)).name == "addition"
    keys = {asked.headers["Idempotency-Key"] for asked in api.asked}
    assert (len(api.asked), len(keys)) == (3, 1)
    assert pauses == [0.25, 0.5]


def test_a_request_that_is_still_being_answered_is_waited_for(api: FakeApi) -> None:
    api.on("POST /v1/tasks", problem(409, code="request-in-progress"), Reply(TASK, 201))
    with Client(api.url, sleep=lambda _: None) as client:
        assert client.post_task(ADDITION, prompts(1)).name == "addition"


def test_two_changes_have_two_idempotency_keys(api: FakeApi) -> None:
    api.on("POST /v1/tasks/addition/pause", TASK)
    with Client(api.url) as client:
        client.pause("addition")
        client.pause("addition")
    assert len({asked.headers["Idempotency-Key"] for asked in api.asked}) == 2


def test_an_api_that_never_answers_is_unavailable_after_a_few_attempts(api: FakeApi) -> None:
    api.on("GET /v1/status", Reply(hang_up=True))
    with Client(api.url, attempts=3, sleep=lambda _: None) as client, pytest.raises(Unavailable, match=api.url):
        client.status()
    assert len(api.asked) == 3


def test_a_refusal_names_every_field_what_was_expected_and_what_came(api: FakeApi) -> None:
    errors = [("/reward/0/scorer", "one of verifier", '"verifer"'), ("", "a task", "nothing")]
    api.on("POST /v1/tasks", problem(422, *errors))
    with Client(api.url) as client, pytest.raises(ApiError) as refused:
        client.post_task(ADDITION, prompts(1))
    assert str(refused.value).splitlines() == [
        "It does not fit (422)",
        '  /reward/0/scorer: expected one of verifier, got "verifer"',
        "  the body: expected a task, got nothing",
    ]
    assert len(api.asked) == 1


def test_a_refusal_that_is_no_problem_document_is_told_by_its_status(api: FakeApi) -> None:
    api.on("GET /v1/status", Reply(["not", "ours"], 418))
    with Client(api.url) as client, pytest.raises(ApiError, match="418"):
        client.status()


def test_a_task_is_posted_with_what_was_set_and_nothing_else(api: FakeApi) -> None:
    api.on("POST /v1/tasks", Reply(TASK, 201))
    with Client(api.url) as client:
        client.post_task(ADDITION, prompts(1))
    assert api.asked[0].body == {
        "name": "addition",
        "reward": [{"scorer": "verifier"}],
        "prompts": [{"text": "0+1=", "reference": "1"}],
    }


def test_prompts_beyond_what_one_request_takes_follow_the_task(api: FakeApi) -> None:
    api.on("POST /v1/tasks", Reply(TASK, 201))
    api.on("POST /v1/tasks/addition/prompts", Reply(posted(1), 201))
    api.on("GET /v1/tasks/addition", TASK)
    with Client(api.url) as client:
        client.post_task(ADDITION, prompts(PROMPTS_AT_ONCE + 1))
    first, second, _ = api.asked
    assert len(first.body["prompts"]) == PROMPTS_AT_ONCE
    assert second.body == [{"text": f"{PROMPTS_AT_ONCE}+1=", "reference": str(PROMPTS_AT_ONCE + 1)}]


def test_a_request_never_grows_past_half_of_what_the_api_takes(api: FakeApi) -> None:
    api.on("POST /v1/tasks/addition/prompts", Reply(posted(1), 201))
    with Client(api.url) as client:
        client.add_prompts("addition", [PromptSpec(text="x" * 65_000)] * 300)
    sizes = [int(asked.headers["Content-Length"]) for asked in api.asked]
    assert len(sizes) == 2
    assert max(sizes) < 17 << 20


def test_only_the_filters_that_are_set_are_asked_for(api: FakeApi) -> None:
    api.on("GET /v1/trajectories", listing())
    with Client(api.url) as client:
        assert client.trajectories(task="addition", policy_version=0) == []
    assert api.asked[0].query == {"task": "addition", "policy_version": "0", "limit": "50"}


def test_a_name_cannot_lead_to_another_path(api: FakeApi) -> None:
    with Client(api.url) as client, pytest.raises(ApiError):
        client.task("../status")
    assert api.asked[0].path == "/v1/tasks/..%2Fstatus"
