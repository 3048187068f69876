"""The client and the fake API of its tests, held to the real API on a real database."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from functools import partial

import pytest

from tba_cli.client import Client
from tba_cli.errors import ApiError
from tba_cli.local import postgres
from tba_cli.local.ports import LOOPBACK, free_ports, is_ready
from tba_cli.local.process import ProcessSpec
from tba_cli.local.supervisor import Supervisor
from tba_common.tasks import PromptSpec, Sampling, ScorerTerm, Task
from tests.cli.fake_api import STATUS, TASK

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def client(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of an API that has a migrated, empty database and nobody else on the line."""
    api_port, health_port = free_ports(2)
    health = f"{LOOPBACK}:{health_port}"
    env = {
        "TBA_DATABASE_URL": postgres.create_database(postgres_url, f"client_{uuid.uuid4().hex}"),
        "TBA_API_ADDRESS": f"{LOOPBACK}:{api_port}",
        "TBA_HEALTH_ADDRESS": health,
    }
    command = (sys.executable, "-m", "services.buffer")
    specs = [
        ProcessSpec(name="migrate", command=(*command, "migrate"), env=env, finite=True, next_when_done=True),
        ProcessSpec(name="tba-api", command=(*command, "api"), env=env, ready=partial(is_ready, health)),
    ]
    directory = tmp_path_factory.mktemp("api")
    with Supervisor(specs, directory), Client(f"http://{LOOPBACK}:{api_port}") as client:
        yield client


@pytest.fixture
def task() -> Task:
    """A task that no other test has."""
    return Task(
        name=f"sums-{uuid.uuid4().hex[:8]}",
        reward=(ScorerTerm(scorer="verifier", options={"match": "exact"}),),
        sampling=Sampling(completions=4),
    )


PROMPTS = [PromptSpec(text="1+1=", reference="2"), PromptSpec(text="2+2=", reference="4", split="eval")]


def test_a_posted_task_is_listed_as_it_was_posted(client: Client, task: Task) -> None:
    posted = client.post_task(task, PROMPTS)
    assert posted.spec == task
    assert (posted.progress.prompts_train, posted.progress.prompts_eval) == (1, 1)
    assert task.name in [found.name for found in client.tasks()]
    assert client.task(task.name).state == "active"


def test_a_task_is_paused_resumed_and_deleted(client: Client, task: Task) -> None:
    client.post_task(task, PROMPTS)
    assert client.pause(task.name).state == "paused"
    assert client.resume(task.name).state == "active"
    client.delete(task.name)
    with pytest.raises(ApiError, match="404") as refused:
        client.task(task.name)
    assert refused.value.exit_code == 4


def test_a_prompt_with_a_known_key_is_not_added_again(client: Client, task: Task) -> None:
    client.post_task(task, PROMPTS)
    more = [PromptSpec(text="3+3=", reference="6", key="three")]
    assert [prompt.created for prompt in client.add_prompts(task.name, more * 2)] == [True, False]
    assert client.task(task.name).progress.prompts_train == 2


def test_more_prompts_than_one_request_takes_all_arrive(client: Client, task: Task) -> None:
    prompts = [PromptSpec(text=f"{i}+1=", reference=str(i + 1)) for i in range(10_001)]
    assert client.post_task(task, prompts).progress.prompts_train == 10_001


def test_a_second_task_of_the_same_name_is_a_conflict(client: Client, task: Task) -> None:
    client.post_task(task, PROMPTS)
    with pytest.raises(ApiError, match="409") as refused:
        client.post_task(task, PROMPTS)
    assert refused.value.exit_code == 5


def test_an_evaluation_before_the_first_version_is_refused_with_the_reason(client: Client, task: Task) -> None:
    client.post_task(task, PROMPTS)
    with pytest.raises(ApiError, match="published"):
        client.evaluate(task.name)


def test_a_refusal_names_the_field(client: Client) -> None:
    document = {"name": "sums", "reward": [{"scorer": "verifer"}], "prompts": [{"text": "1+1="}]}
    with pytest.raises(ApiError, match=r"/reward/0/scorer: expected .*verifier.*, got \"verifer\""):
        client.post_document(document)


def test_a_run_without_a_learner_has_a_status_and_no_curves(client: Client) -> None:
    status = client.status()
    assert (status.policy_version, status.step, status.ledger.balances) == (None, 0, True)
    assert client.steps() == []
    assert client.evaluations() == []
    assert client.trajectories() == []
    assert client.generator_versions("none") == 0


def test_the_fake_api_answers_with_no_field_that_the_real_one_lacks(client: Client, task: Task) -> None:
    client.post_task(task, PROMPTS)
    status = client.status().model_dump(mode="json")
    assert set(STATUS) - {"a_field_of_tomorrow"} == set(status)
    assert {name: set(part) for name, part in STATUS.items() if isinstance(part, dict) and name != "staleness"} == {
        name: set(status[name]) for name in ("rates", "queues", "buffer", "ledger")
    }
    assert set(TASK) == set(client.task(task.name).model_dump(mode="json"))
