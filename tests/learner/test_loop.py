"""The learner's line on a broker in memory and a real disk: what is said, what is kept, what a crash costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from services.learner.checkpoint import STATE
from services.learner.loop import ANNOUNCE_SECONDS, MAX_SKIPPED_IN_A_ROW, Diverged, Learner
from services.learner.policy import Policy
from services.learner.settings import LearnerSettings
from services.learner.update import Updater
from tba_common.delivery import TooManyBad
from tba_common.kafka import Reader
from tba_common.messages import Message, Resumed, Step, Weights
from tba_common.topics import STEPS, WEIGHTS
from tba_common.weights import WeightStore
from tests.learner.fakes import FakeBroker
from tests.learner.groups import RUN, batch, draw, group
from tests.learner.small_policy import write_small

pytestmark = pytest.mark.integration

MakeUpdater = Callable[..., Updater]


@dataclass
class Life:
    """One process of the learner, from its start."""

    learner: Learner
    reader: Reader
    updater: Updater

    def train(self, batches: int) -> None:
        """Take exactly this many batches, which are all in the log."""
        assert [self.learner.step(self.reader) for _ in range(batches)] == [True] * batches


@dataclass
class World:
    """What outlives a process: the broker and the disk."""

    root: Path
    model: Path
    make_updater: MakeUpdater
    broker: FakeBroker = field(default_factory=FakeBroker)
    now: float = 0.0

    @property
    def store(self) -> WeightStore:
        return WeightStore(self.root / "weights")

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def start(self, **changes: Any) -> Life:
        """A new process; one that was not closed has crashed."""
        options: dict[str, Any] = {"checkpoint_directory": self.checkpoints, "run_id": RUN} | changes
        settings = LearnerSettings(model=str(self.model), weights_url=str(self.root / "weights"), **options)
        updater = self.make_updater(folder=self.model)
        self.broker.waiting.clear()
        learner = Learner(settings, updater, self.broker.producer(), self.broker.dead_letters(), clock=lambda: self.now)
        learner.start()
        return Life(learner, self.broker.reader(learner.offsets), updater)


@pytest.fixture
def world(tmp_path: Path, model: Path, make_updater: MakeUpdater) -> World:
    return World(tmp_path, model, make_updater)


def post(world: World, *batch_ids: int, **changes: Any) -> None:
    for batch_id in batch_ids:
        world.broker.post(batch(batch_id, **changes))


def checkpointed(world: World) -> int:
    """The newest batch that a checkpoint on disk covers."""
    states = sorted(world.checkpoints.glob(f"step-????????/{STATE}"))
    return int(json.loads(states[-1].read_text())["batch_id"]) if states else 0


def poisoned(batch_id: int) -> list[Message]:
    return [group(draw(1, [40, 1], reward=float("nan")), draw(2, [41, 1]), batch_id=batch_id)]


def test_version_0_is_the_start_policy_published_before_the_first_step(world: World, policy: Policy) -> None:
    world.start()
    (resumed, weights) = world.broker.delivered
    assert resumed == (STEPS.name, Resumed(run_id=RUN, batch_id=0, step=0), None)
    assert (weights[0], weights[2]) == (WEIGHTS.name, RUN)
    assert isinstance(weights[1], Weights)
    snapshot = world.store.fetch(weights[1])
    assert (snapshot.version, snapshot.step, snapshot.canary) == (0, 0, policy.canary())


def test_one_batch_is_one_step_and_one_report_in_the_order_of_the_batches(world: World) -> None:
    post(world, 2, 1, 1, 3)
    world.start().train(3)
    assert [(step.step, step.batch_id) for step in world.broker.steps] == [(1, 1), (2, 2), (3, 3)]
    assert {(step.trajectories, step.tokens > 0) for step in world.broker.steps} == {(8, True)}


def test_a_turn_without_a_whole_batch_trains_nothing(world: World) -> None:
    world.broker.post(batch(1)[:1])
    life = world.start()
    assert not life.learner.step(life.reader)
    assert world.broker.steps == []


def test_a_report_counts_how_far_each_trajectory_lay_behind_the_policy(world: World) -> None:
    draws = [draw(i, [40, 1], reward=i % 2, policy_version=version) for i, version in enumerate([0, 1, 1, 2])]
    post(world, 1, 2)
    world.broker.post([group(*draws, batch_id=3)])
    world.start().train(3)
    last = world.broker.steps[-1]
    assert last.policy_version == 2
    assert last.staleness_versions == {0: 1, 1: 2, 2: 1}


def test_versions_come_every_few_steps_and_each_is_announced(world: World) -> None:
    post(world, 1, 2, 3, 4, 5)
    world.start(publish_every=2).train(5)
    assert world.broker.announced == [(0, 0), (1, 2), (2, 4)]
    assert [step.policy_version for step in world.broker.steps] == [0, 0, 1, 1, 2]
    assert world.store.find(2).step == 4


def test_old_versions_are_deleted_from_the_store(world: World) -> None:
    post(world, 1, 2, 3)
    world.start(keep_versions=2).train(3)
    assert world.store.versions() == [2, 3]


def test_a_crash_costs_the_steps_since_the_checkpoint_which_are_taken_again_the_same(world: World) -> None:
    post(world, 1, 2, 3, 4, 5)
    first = world.start(checkpoint_every=2)
    first.train(3)
    second = world.start(checkpoint_every=2)
    assert world.broker.resumed[-1] == Resumed(run_id=RUN, batch_id=2, step=2)
    second.train(3)
    assert [(step.step, step.batch_id) for step in world.broker.steps] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (1, 1),  # said again, for the broker may have lost it
        (2, 2),
        (3, 3),
        (4, 4),
        (5, 5),
    ]
    assert world.broker.steps[3:5] == world.broker.steps[:2]
    before, again = world.broker.steps[2], world.broker.steps[5]
    assert (again.loss, again.grad_norm, again.reward) == (before.loss, before.grad_norm, before.reward)


def test_a_crash_changes_nothing_in_the_weights_bit_by_bit(world: World, make_updater: MakeUpdater) -> None:
    post(world, 1, 3, 2, 4, 2, 5)
    world.start(checkpoint_every=2).train(3)
    resumed = world.start(checkpoint_every=2)
    resumed.train(3)
    straight = make_updater()
    for step in range(1, 6):
        straight.update(batch(step), step)
    pairs = zip(resumed.updater.policy.model.parameters(), straight.policy.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_batch_that_was_ahead_of_its_turn_at_the_checkpoint_is_read_again(world: World) -> None:
    world.broker.post([*batch(1), *batch(3), *batch(2)[:1]])
    world.start(checkpoint_every=1).train(1)
    world.broker.post(batch(2)[1:])
    world.start(checkpoint_every=1).train(2)
    assert [step.batch_id for step in world.broker.steps] == [1, 1, 2, 3]


def test_versions_only_go_up_though_the_weights_went_back(world: World) -> None:
    post(world, *range(1, 7))
    world.start(checkpoint_every=2).train(3)
    assert world.store.versions() == [0, 1, 2, 3]
    second = world.start(checkpoint_every=2)
    assert world.broker.announced[-1] == (4, 2)
    second.train(2)
    second.learner.close()
    assert world.broker.announced[-2:] == [(5, 3), (6, 4)]
    assert world.store.versions() == [0, 1, 2, 3, 4, 5, 6]


def test_a_restart_that_lost_nothing_announces_the_version_there_is(world: World) -> None:
    post(world, 1, 2)
    world.start(checkpoint_every=2).train(2)
    world.start(checkpoint_every=2)
    assert world.broker.announced[-1] == (2, 2)
    assert world.store.versions() == [0, 1, 2]


def test_a_version_of_a_step_that_was_lost_is_not_announced_again_though_it_moved_nothing(world: World) -> None:
    post(world, 1)
    world.broker.post(poisoned(2))
    life = world.start(checkpoint_every=10)
    life.train(1)
    life.learner.close()
    life.train(1)
    world.start()
    assert world.broker.announced[-1] == (3, 1)
    assert world.store.find(2).canary == world.store.find(3).canary


def test_another_start_policy_is_not_taken_for_the_stored_one(world: World) -> None:
    world.start()
    world.model = write_small(world.root / "other", seed=1)
    world.start()
    assert world.broker.announced == [(0, 0), (1, 0)]


def test_a_damaged_newest_version_is_not_announced_again(world: World) -> None:
    world.start()
    (world.root / "weights" / "v000000" / "config.json").write_text("{}")
    world.start()
    assert world.broker.announced == [(0, 0), (1, 0)]


def test_the_last_step_of_a_bounded_run_publishes_and_saves_and_ends_it(world: World) -> None:
    post(world, 1, 2, 3, 4)
    life = world.start(max_steps=3, publish_every=10, checkpoint_every=10)
    while not life.learner.finished:
        life.learner.step(life.reader)
    life.learner.close()
    assert [step.step for step in world.broker.steps] == [1, 2, 3]
    assert world.broker.announced == [(0, 0), (1, 3)]
    assert checkpointed(world) == 3
    assert world.store.find(1).canary == life.updater.policy.canary()
    again = world.start(max_steps=3, publish_every=10)
    assert again.learner.finished
    again.learner.close()
    assert world.broker.announced[2:] == [(1, 3)]


def test_closing_between_two_versions_leaves_the_newest_weights_in_both_stores(world: World) -> None:
    post(world, 1, 2, 3)
    life = world.start(publish_every=2, checkpoint_every=2)
    life.train(3)
    life.learner.close()
    assert world.broker.announced == [(0, 0), (1, 2), (2, 3)]
    assert checkpointed(world) == 3


def test_a_malformed_group_goes_to_the_dead_letters_and_training_goes_on(world: World) -> None:
    out_of_range = group(draw(1, [40, 1]), batch_id=1, index=2, size=2)
    world.broker.post([b"\xc1", Resumed(run_id=RUN, batch_id=0, step=0), out_of_range, *batch(1)])
    world.start().train(1)
    assert [letter.offset for letter in world.broker.dead] == [0, 1, 2]
    reasons = [letter.reason for letter in world.broker.dead]
    assert "does not decode" in reasons[0]
    assert reasons[1:] == [
        "tba.batches expected Group, got Resumed",
        "batch 1, group 2: expected an index from 0 to 1",
    ]
    assert [step.batch_id for step in world.broker.steps] == [1]


def test_bad_messages_crash_the_learner_only_when_no_good_one_is_between_them(world: World) -> None:
    bad: list[Message | bytes] = [b"\xc1"] * 30
    first, second = batch(1)
    world.broker.post([*bad, first, *bad, second, *bad])
    world.start().train(1)
    assert len(world.broker.dead) == 90
    life = world.start()
    world.broker.post(bad)
    with pytest.raises(TooManyBad):
        life.learner.step(life.reader)


def test_the_newest_version_is_announced_again_every_few_seconds(world: World) -> None:
    life = world.start()
    said = []
    for now in (1.0, ANNOUNCE_SECONDS - 0.1, ANNOUNCE_SECONDS, 2 * ANNOUNCE_SECONDS - 0.1, 2 * ANNOUNCE_SECONDS):
        world.now = now
        life.learner.step(life.reader)
        said.append(len(world.broker.waiting))
    assert ANNOUNCE_SECONDS == 5.0
    assert said == [0, 0, 1, 1, 2]
    assert {message.version for _, message, _ in world.broker.waiting if isinstance(message, Weights)} == {0}


def test_many_steps_in_a_row_that_are_not_finite_crash_the_learner(world: World) -> None:
    for batch_id in range(1, MAX_SKIPPED_IN_A_ROW + 1):
        world.broker.post(poisoned(batch_id))
    life = world.start(publish_every=100)
    life.train(MAX_SKIPPED_IN_A_ROW - 1)
    with pytest.raises(Diverged, match="10 steps in a row"):
        life.learner.step(life.reader)
    assert [step.step for step in world.broker.steps] == list(range(1, MAX_SKIPPED_IN_A_ROW))


def test_a_good_step_between_bad_ones_starts_the_count_anew(world: World) -> None:
    bad = MAX_SKIPPED_IN_A_ROW - 1
    for batch_id in range(1, 2 * bad + 2):
        world.broker.post(batch(batch_id) if batch_id == bad + 1 else poisoned(batch_id))
    world.start(publish_every=100).train(2 * bad + 1)
    assert len(world.broker.steps) == 2 * bad + 1


def test_no_report_claims_a_checkpoint_that_is_not_on_disk(world: World) -> None:
    claims: list[tuple[int, int]] = []

    def look(message: Message) -> None:
        if isinstance(message, Step):
            claims.append((message.checkpoint_batch_id, checkpointed(world)))

    world.broker.look = look
    post(world, *range(1, 8))
    world.start(checkpoint_every=3).train(7)
    assert claims == [(0, 0), (0, 0), (0, 0), (3, 3), (3, 3), (3, 3), (6, 6)]


def test_a_step_is_reported_before_a_checkpoint_covers_it(world: World) -> None:
    post(world, 1)
    unwritable = world.root / "a-file"
    unwritable.touch()
    life = world.start(checkpoint_every=1, checkpoint_directory=unwritable)
    with pytest.raises(OSError, match="a-file"):
        life.learner.step(life.reader)
    assert [step.batch_id for step in world.broker.steps] == [1]


def test_a_batch_that_comes_again_after_it_was_trained_is_reported_again_before_the_next_is_trained(
    world: World,
) -> None:
    life = world.start()
    post(world, 1)
    life.train(1)
    post(world, 1, 2)
    life.train(1)
    assert [step.batch_id for step in world.broker.steps] == [1, 1, 2]
    assert world.broker.steps[0] == world.broker.steps[1]
    assert [resumed.batch_id for resumed in world.broker.resumed] == [0, 1]
    assert not life.learner.step(life.reader)
    assert len(world.broker.resumed) == 2


def test_when_the_broker_lost_its_logs_the_learner_says_again_what_may_have_been_on_them(world: World) -> None:
    post(world, 1, 2, 3)
    life = world.start()
    life.train(3)
    life.reader.logs_lost += 1
    for _ in range(2):
        assert not life.learner.step(life.reader)
    life.learner.close()
    assert [step.batch_id for step in world.broker.steps] == [1, 2, 3, 2, 3]
    assert [resumed.batch_id for resumed in world.broker.resumed] == [0, 3]


def test_a_learner_whose_next_batch_was_passed_over_says_where_it_is_each_time_that_more_comes(world: World) -> None:
    life = world.start()
    for copies in (1, 2):
        post(world, 4, 5)  # the buffer never heard that this process began at 0
        for _ in range(2):
            assert not life.learner.step(life.reader)
        life.learner.close()
        assert [resumed.batch_id for resumed in world.broker.resumed] == [0] * (1 + copies)


def test_a_report_that_a_checkpoint_covers_is_said_again_by_the_next_process(world: World) -> None:
    post(world, 1, 2, 3)
    world.start(checkpoint_every=3).train(3)
    said = world.broker.steps
    world.broker.delivered.clear()
    world.start(checkpoint_every=3)
    assert world.broker.steps == said[-2:]
    assert [resumed.batch_id for resumed in world.broker.resumed] == [3]
