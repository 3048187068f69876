"""Everything is stopped at once and the broker goes first: nobody waits out its grace, and what was lost is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select

from services.buffer.restore import ensure_run
from services.buffer.tables import issues, runs
from tba_cli.local import kafka_broker
from tba_cli.local.kafka_broker import Broker
from tba_cli.local.ports import free_ports, is_ready
from tba_common.kafka import Producer, Reader
from tba_common.messages import Message, Prompt
from tba_common.tasks import Sampling, ScorerTerm
from tba_common.topics import BATCHES, PROMPTS, STEPS, TRAJECTORIES, WEIGHTS, rollouts
from tests.buffer.world import add_task
from tests.cli.local.processes import wait_until
from tests.generator.tiny_policy import Policy, Publisher
from tests.learner.groups import batch
from tests.learner.small_policy import write_small
from tests.logins import as_role
from tests.reward.rollouts import prompt as rewarded
from tests.reward.rollouts import rollout, term

pytestmark = pytest.mark.integration

GRACE_SECONDS = 120  # much more than it takes, so that a slow machine is not taken for a fault


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    broker = kafka_broker.start()
    yield broker
    broker.stop()


@contextmanager
def process(broker: Broker, run_id: str, *arguments: str, **settings: object) -> Iterator[subprocess.Popen[str]]:
    """A service that is ready."""
    health = f"127.0.0.1:{free_ports(1)[0]}"
    env = os.environ | {name: str(value) for name, value in settings.items()}
    env |= {"TBA_KAFKA_SERVERS": broker.servers, "TBA_RUN_ID": run_id, "TBA_SHARING": "static"}
    env |= {"TBA_HEALTH_ADDRESS": health, "TBA_GRACE_SECONDS": str(GRACE_SECONDS), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([sys.executable, "-m", *arguments], env=env, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: running.poll() is not None or is_ready(health), 120)
        yield running
    finally:
        running.kill()
        running.communicate()


def stopped(running: subprocess.Popen[str]) -> str:
    """Stop a process and return what it said; it ends with 0."""
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=GRACE_SECONDS + 20)
    assert running.returncode == 0, said
    assert "not stopped in time" not in said
    assert "stopped without the broker: what it did not take comes again" in said
    return said


def read_one(broker: Broker, run_id: str, topic: str) -> Message:
    with closing(Reader(broker.servers, run_id, [topic], {})) as reader:
        deadline = time.monotonic() + 120
        while not (records := reader.poll(0.5)):
            assert time.monotonic() < deadline
        return records[0].message()


def test_a_scorer_names_what_it_could_not_send(own_broker: Broker, run_id: str) -> None:
    exact, math = rewarded(term(match="exact"), run_id=run_id), rewarded(term(match="math"), run_id=run_id)
    long, short = rollout("$9^{9^9}$", of=math), rollout("19", of=exact)
    with closing(Producer(own_broker.servers, run_id)) as producer:
        for message in (long, short, *[long] * 40):  # more than it is through with before the broker is gone
            producer.send(rollouts("verifier"), message, key="3")
    with process(own_broker, run_id, "services.reward", "verifier", TBA_TIME_LIMIT_SECONDS=2) as verifier:
        read_one(own_broker, run_id, TRAJECTORIES.name)
        own_broker.stop()
        _, _, undelivered = stopped(verifier).partition("not acknowledged, and the process stops: ")
        assert "deadletter/1 to tba.dead_letters" in undelivered  # the ack of the trajectories may be missing, too


def test_a_generator_names_what_it_could_not_send(own_broker: Broker, run_id: str, tmp_path: Path) -> None:
    weights = Publisher(tmp_path).publish(1, Policy()).model_copy(update={"run_id": run_id})
    order = Prompt(
        run_id=run_id,
        issue_id=1,
        task_id=1,
        prompt_id=107,
        text="1+2=",
        sampling=Sampling(completions=4, max_new_tokens=6),
        reward=(ScorerTerm(scorer="verifier"),),
    )
    with closing(Producer(own_broker.servers, run_id)) as producer:
        producer.send(WEIGHTS.name, weights, key=run_id)
        for issue_id in range(4_000):  # more than it answers before the broker is gone
            producer.send(PROMPTS.name, order.model_copy(update={"issue_id": issue_id}), partition=0)
    options = {"TBA_WEIGHTS_URL": tmp_path, "TBA_CANARY_TOLERANCE": 0.001}
    with process(own_broker, run_id, "services.generator", "worker", **options) as generator:
        read_one(own_broker, run_id, rollouts("verifier"))
        own_broker.stop()
        assert "the process stops: rollout/3 to tba.rollouts.verifier with key 107" in stopped(generator)


def test_a_learner_keeps_its_steps(own_broker: Broker, run_id: str, tmp_path: Path) -> None:
    write_small(tmp_path / "model")
    with closing(Producer(own_broker.servers, run_id)) as producer:
        for group in batch(1):
            producer.send(BATCHES.name, group.model_copy(update={"run_id": run_id}))
    options = {
        "TBA_MODEL": tmp_path / "model",
        "TBA_WEIGHTS_URL": tmp_path / "weights",
        "TBA_CHECKPOINT_DIRECTORY": tmp_path / "checkpoints",
        "TBA_PUBLISH_EVERY": 3,
        "TBA_DEVICE": "cpu",
    }
    with process(own_broker, run_id, "services.learner", "run", **options) as learner:
        read_until_step(own_broker, run_id)
        own_broker.stop()
        assert "weights/" in stopped(learner).partition("the process stops: ")[2]
    assert list((tmp_path / "checkpoints").iterdir())


def read_until_step(broker: Broker, run_id: str) -> None:
    with closing(Reader(broker.servers, run_id, [STEPS.name], {})) as reader:
        deadline = time.monotonic() + 120
        while not any(record.headers["schema"].startswith(b"step/") for record in reader.poll(0.5)):
            assert time.monotonic() < deadline


def test_a_buffer_names_what_it_could_not_send(own_broker: Broker, run_id: str, migrated: str) -> None:
    engine = create_engine(migrated, isolation_level="AUTOCOMMIT")
    database = as_role(migrated, "tba_buffer")
    with closing(engine.connect()) as connection:
        ensure_run(connection, run_id)
        connection.execute(runs.update().values(policy_version=0))
        with process(own_broker, run_id, "services.buffer", "serve", TBA_DATABASE_URL=database) as buffer:
            wait_until(lambda: connection.scalar(select(runs.c.status_at)) is not None, 60)
            own_broker.stop()
            add_task(connection, run_id, train=12)
            wait_until(lambda: connection.scalar(select(issues.c.issue_id).limit(1)) is not None, 60)
            assert "the process stops: prompt/" in stopped(buffer)
    engine.dispose()
