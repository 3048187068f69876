"""The learner process on a real broker: killed in the middle, it ends with the weights of steps without a break."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest
import torch
from safetensors.torch import load_file

from services.learner.policy import Policy
from services.learner.schedule import LearningRateSchedule
from services.learner.update import Updater
from tba_common.kafka import Producer, Reader
from tba_common.messages import Group, Message, Resumed, Step, Weights
from tba_common.topics import BATCHES, STEPS, WEIGHTS
from tba_common.weights import WeightStore
from tests.cli.local.processes import wait_until
from tests.learner.groups import batch
from tests.learner.small_policy import write_small

pytestmark = pytest.mark.integration

STEPS_IN_ALL: Final = 8
LEARNING_RATE: Final = 0.01
SCHEDULE: Final = "4/2/10"


@contextlib.contextmanager
def learner(broker: str, run_id: str, root: Path, *, ranks: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {
        "TBA_KAFKA_SERVERS": broker,
        "TBA_RUN_ID": run_id,
        "TBA_MODEL": str(root / "model"),
        "TBA_WEIGHTS_URL": str(root / "weights"),
        "TBA_CHECKPOINT_DIRECTORY": str(root / "checkpoints"),
        "TBA_LEARNING_RATE": str(LEARNING_RATE),
        "TBA_LEARNING_RATE_SCHEDULE": SCHEDULE,
        "TBA_CHECKPOINT_EVERY": "3",
        "TBA_PUBLISH_EVERY": "3",
        "TBA_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else []
    command = [sys.executable, "-m", *torchrun, "services.learner", "run"]
    process = subprocess.Popen(command, env=environment)
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and to what torchrun started, each rank in a session of its own."""
    with contextlib.suppress(FileNotFoundError):
        for pid in [process.pid, *ranks_of(process)]:
            with contextlib.suppress(ProcessLookupError):  # it may end with the one before
                os.kill(pid, signal.SIGKILL)
    process.wait()


def ranks_of(torchrun: subprocess.Popen[bytes]) -> list[int]:
    """The processes that torchrun has started, the leader first."""
    return [int(pid) for pid in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()]


class Ear:
    """Hears what the learner of a run says, in order."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.heard: list[Message] = []

    def listen_until_step(self, step: int) -> None:
        deadline = time.monotonic() + 180
        while not any(isinstance(message, Step) and message.step == step for message in self.heard):
            assert time.monotonic() < deadline, f"step {step} not reported within three minutes, heard {self.heard}"
            self.heard += [record.message() for record in self._reader.poll(0.5)]

    @property
    def steps(self) -> list[Step]:
        """Every step each time it was trained; what was only said again is left out."""
        steps = [message for message in self.heard if isinstance(message, Step)]
        return [step for place, step in enumerate(steps) if step not in steps[:place]]

    @property
    def resumed(self) -> list[tuple[int, int]]:
        """Batch and step wherever it said where it is: at each start, and in between when a copy of a batch came."""
        return [(message.batch_id, message.step) for message in self.heard if isinstance(message, Resumed)]

    @property
    def versions(self) -> list[int]:
        """Announced versions, repeats left out."""
        return list(dict.fromkeys(message.version for message in self.heard if isinstance(message, Weights)))


@contextlib.contextmanager
def ear(broker: str, run_id: str) -> Iterator[Ear]:
    with contextlib.closing(Reader(broker, run_id, [STEPS.name, WEIGHTS.name], {})) as reader:
        yield Ear(reader)


def send(broker: str, run_id: str, groups: Iterable[Group]) -> None:
    with contextlib.closing(Producer(broker, run_id)) as producer:
        for group in groups:
            producer.send(BATCHES.name, group.model_copy(update={"run_id": run_id}))


def batches(*batch_ids: int) -> list[Group]:
    return [group for batch_id in batch_ids for group in batch(batch_id)]


def trained_without_a_break(model: Path) -> dict[str, torch.Tensor]:
    """The weights after all steps, in this process and without a broker or a disk between them."""
    torch.set_num_threads(1)  # as in the process: sums depend on how they are divided
    updater = Updater(
        Policy.load(str(model), device="cpu"),
        learning_rate=LEARNING_RATE,
        schedule=LearningRateSchedule.parse(SCHEDULE),
        token_budget=16_384,
    )
    for step in range(1, STEPS_IN_ALL + 1):
        updater.update(batch(step), step)
    state: dict[str, torch.Tensor] = updater.policy.model.state_dict()
    return state


def test_a_learner_killed_after_a_checkpoint_ends_with_the_weights_of_steps_without_a_break(
    broker: str, run_id: str, tmp_path: Path
) -> None:
    write_small(tmp_path / "model")
    # A copy, and batch 7 and half of 6 ahead of their turn: at the kill they are held, beyond the checkpoint.
    send(broker, run_id, [*batches(1, 2, 2, 3, 4, 7), batch(6)[0], *batches(5)])
    with ear(broker, run_id) as said:
        with learner(broker, run_id, tmp_path) as first:
            said.listen_until_step(5)
            first.send_signal(signal.SIGKILL)
        send(broker, run_id, [batch(6)[1], *batches(8)])
        with learner(broker, run_id, tmp_path) as second:
            said.listen_until_step(STEPS_IN_ALL)
            second.send_signal(signal.SIGTERM)
            assert second.wait(timeout=120) == 0
    assert (said.resumed[0], said.resumed[-1]) == ((0, 0), (3, 3))
    assert [(step.step, step.batch_id) for step in said.steps] == [(n, n) for n in (1, 2, 3, 4, 5, 4, 5, 6, 7, 8)]
    assert [step.loss for step in said.steps[3:5]] == [step.loss for step in said.steps[5:7]]
    assert said.versions == sorted(said.versions)
    store = WeightStore(tmp_path / "weights")
    newest = store.find(store.versions()[-1])
    assert newest.step == STEPS_IN_ALL  # between two versions: SIGTERM publishes what there is
    weights, expected = load_file(newest.directory / "model.safetensors"), trained_without_a_break(tmp_path / "model")
    assert weights.keys() == expected.keys()
    assert [name for name in weights if not torch.equal(weights[name], expected[name])] == []


def test_two_ranks_killed_after_a_checkpoint_end_with_the_weights_of_one(
    broker: str, run_id: str, tmp_path: Path
) -> None:
    write_small(tmp_path / "model")
    send(broker, run_id, batches(1, 2, 3, 4, 5))
    with ear(broker, run_id) as said:
        with learner(broker, run_id, tmp_path, ranks=2) as first:
            said.listen_until_step(5)
            kill(first)
        send(broker, run_id, batches(6, 7, 8))
        with learner(broker, run_id, tmp_path, ranks=2) as second:
            said.listen_until_step(STEPS_IN_ALL)
            second.send_signal(signal.SIGTERM)
            second.wait(timeout=120)
    steps = {step.step: step for step in said.steps}
    assert sorted(steps) == list(range(1, STEPS_IN_ALL + 1))
    assert steps[1].trajectories == sum(len(group.draws) for group in batch(1))
    store = WeightStore(tmp_path / "weights")
    newest = store.find(store.versions()[-1])
    assert newest.step == STEPS_IN_ALL
    weights, expected = load_file(newest.directory / "model.safetensors"), trained_without_a_break(tmp_path / "model")
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=2e-3)


def test_the_whole_learner_fails_when_a_follower_dies_while_the_leader_waits_for_work(
    broker: str, run_id: str, tmp_path: Path
) -> None:
    write_small(tmp_path / "model")
    send(broker, run_id, batches(1))
    with ear(broker, run_id) as said, learner(broker, run_id, tmp_path, ranks=2) as running:
        said.listen_until_step(1)
        ranks = ranks_of(running)
        os.kill(ranks[1], signal.SIGKILL)
        assert running.wait(timeout=180) != 0
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks))
