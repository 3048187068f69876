"""Only a proven version serves, and the law says which one should."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from services.generator.weight_sync import (
    RETRY_SECONDS,
    WeightsRefused,
    canary_gap,
    next_version,
)
from tba_common.weights import Canary
from tests.generator.fakes import BlankVersions, ContinuousEngine, FakeBroker, weight_sync


@pytest.mark.parametrize(
    ("serving", "newest", "waiting", "evaluating", "expected"),
    [
        (None, None, set(), False, None),  # nothing published yet
        (None, 4, set(), False, 4),
        (None, 4, {2}, False, 2),
        (4, 4, set(), False, 4),
        (4, 6, set(), False, 6),
        (4, 6, set(), True, 4),  # no swap under an evaluation
        (4, 6, {6}, True, 4),
        (4, 6, {4}, False, 4),  # one version's evaluations together
        (4, 6, {2, 4, 6}, False, 4),
        (4, 6, {5, 2}, False, 2),  # the oldest is collected first
        (6, 6, {2}, False, 2),
        (2, 6, set(), False, 6),  # and back
        (7, 6, set(), False, 7),  # an evaluation named a version before its announcement came
        (6, 6, {7}, False, 7),
    ],
)
def test_the_version_that_should_be_loaded_next(
    serving: int | None, newest: int | None, waiting: set[int], evaluating: bool, expected: int | None
) -> None:
    assert next_version(serving=serving, newest=newest, waiting=waiting, evaluating=evaluating) == expected


def test_the_canary_gap_is_the_mean_difference_per_token() -> None:
    canary = Canary(token_ids=((1, 2, 3), (1, 2)), prompt_lengths=(1, 1), logprobs=(-4.0, -1.0))
    assert canary_gap(canary, [-4.5, -1.5]) == pytest.approx((0.25 + 0.5) / 2)
    assert canary_gap(canary, [-4.0, -1.0]) == 0
    assert canary_gap(Canary((), (), ()), []) == 0


class Line:
    """A sync on a real store with an engine that obeys; time stands still until told."""

    def __init__(self, root: Path, engine: ContinuousEngine) -> None:
        self.now = 0.0
        self.broker = FakeBroker()
        self.versions = BlankVersions(root)
        self.store = self.versions.store
        self.sync = weight_sync(engine, self.broker, self.store, lambda: self.now)

    def announce(self, version: int) -> None:
        self.broker.announce(self.versions.publish(version))
        self.sync.poll(0)


@pytest.fixture
def engine() -> ContinuousEngine:
    return ContinuousEngine()


@pytest.fixture
def line(tmp_path: Path, engine: ContinuousEngine) -> Line:
    return Line(tmp_path, engine)


def test_the_highest_announced_version_is_the_newest(line: Line) -> None:
    assert line.sync.newest is None
    line.announce(3)
    line.announce(5)
    line.broker.announce(line.store.announce("run", 3, 1))  # a learner that comes back
    line.sync.poll(0)
    assert line.sync.newest == 5


def test_an_announcement_that_does_not_decode_is_passed_over(line: Line) -> None:
    line.broker.announce(b"\xc1")
    line.announce(1)
    assert line.sync.newest == 1


def test_a_loaded_version_serves_and_ends_the_trouble(line: Line) -> None:
    assert line.sync.trouble == "waiting for the first weights"
    line.announce(1)
    line.sync.load(1)
    assert (line.sync.serving, line.sync.trouble, line.sync.turned_back) == (1, "", False)


def test_a_version_that_is_not_announced_is_found_in_the_store(line: Line) -> None:
    line.announce(1)
    line.announce(2)
    line.sync.load(2)
    line.sync.load(1)
    assert line.sync.serving == 1
    assert line.sync.turned_back
    line.sync.load(2)
    assert not line.sync.turned_back


def truncate(line: Line) -> None:
    path = line.store.find(2).directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def alter(line: Line) -> None:
    path = line.store.find(2).directory / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def remove(line: Line) -> None:
    line.store.find(2).directory.rename(line.store.find(2).directory.with_name("elsewhere"))


@pytest.mark.parametrize(("damage", "reason"), [(truncate, "bytes, got"), (alter, "sha256"), (remove, "found none")])
def test_a_damaged_version_leaves_the_old_one_serving_and_says_why(
    line: Line,
    engine: ContinuousEngine,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Line], None],
    reason: str,
) -> None:
    line.announce(1)
    line.sync.load(1)
    line.announce(2)
    damage(line)
    with caplog.at_level(logging.ERROR):
        line.sync.load(2)
    assert line.sync.serving == 1
    assert engine.loads == [1]
    assert reason in line.sync.trouble
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == ["weights refused"]


def test_a_wrong_digest_in_the_announcement_is_refused(line: Line, engine: ContinuousEngine) -> None:
    weights = line.versions.publish(1)
    line.broker.announce(weights.model_copy(update={"digest": "0" * 64}))
    line.sync.poll(0)
    line.sync.load(1)
    assert engine.loads == []
    assert "digest expected 000" in line.sync.trouble


def test_a_refused_version_is_tried_once_more_after_a_pause_and_then_raises(
    line: Line, engine: ContinuousEngine
) -> None:
    engine.unloadable = {1}
    line.announce(1)
    line.sync.load(1)
    line.sync.load(1)  # too early to count
    line.now = RETRY_SECONDS
    with pytest.raises(WeightsRefused, match="version 1 failed twice: version 1 does not fit"):
        line.sync.load(1)


def test_a_version_that_comes_right_at_the_second_try_serves(line: Line, engine: ContinuousEngine) -> None:
    engine.unloadable = {1}
    line.announce(1)
    line.sync.load(1)
    engine.unloadable = set()
    line.now = RETRY_SECONDS
    line.sync.load(1)
    assert (line.sync.serving, line.sync.trouble) == (1, "")


def test_a_newer_version_is_loaded_at_once_while_a_refused_one_waits(line: Line, engine: ContinuousEngine) -> None:
    engine.unloadable = {1}
    line.announce(1)
    line.sync.load(1)
    line.announce(2)
    line.sync.load(2)
    assert (line.sync.serving, line.sync.trouble) == (2, "")


def test_a_canary_that_differs_puts_the_old_version_back(line: Line, engine: ContinuousEngine) -> None:
    engine.damaged = {2}
    line.announce(1)
    line.sync.load(1)
    line.announce(2)
    line.sync.load(2)
    assert engine.loads == [1, 2, 1]
    assert engine.policy_version == line.sync.serving == 1
    assert "canary gap" in line.sync.trouble


def test_unproven_weights_with_nothing_to_put_back_end_the_process(line: Line, engine: ContinuousEngine) -> None:
    line.announce(1)
    line.sync.load(1)
    line.announce(2)
    engine.damaged, engine.unloadable = {2}, {1}
    with pytest.raises(RuntimeError, match="unproven weights"):
        line.sync.load(2)


def test_a_first_version_that_fails_its_canary_does_not_serve(line: Line, engine: ContinuousEngine) -> None:
    engine.damaged = {1}
    line.announce(1)
    line.sync.load(1)
    assert line.sync.serving is None


class Held(Executor):
    """Does what it was given when told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: fn(*args, **kwargs)))
        return future

    def go(self) -> None:
        future, work = self.waiting.pop(0)
        future.set_result(work())


@pytest.fixture
def held(line: Line) -> Held:
    """The line's versions arrive when told to; version 1 serves."""
    line.announce(1)
    line.sync.load(1)
    line.sync._fetcher = held = Held()
    return held


def test_the_old_version_serves_while_the_new_one_is_fetched(line: Line, engine: ContinuousEngine, held: Held) -> None:
    line.announce(2)
    line.sync.load(2)
    line.sync.load(2)
    assert (line.sync.serving, engine.loads, len(held.waiting)) == (1, [1], 1)
    held.go()
    line.sync.load(2)
    assert (line.sync.serving, engine.loads) == (2, [1, 2])


def test_a_version_that_was_on_its_way_serves_until_a_newer_one_is_here(
    line: Line, engine: ContinuousEngine, held: Held
) -> None:
    line.announce(2)
    line.sync.load(2)
    line.announce(3)
    held.go()
    line.sync.load(3)
    assert line.sync.serving == 2
    line.sync.load(3)
    held.go()
    line.sync.load(3)
    assert engine.loads == [1, 2, 3]


def test_a_version_that_nobody_waits_for_any_more_is_not_loaded(
    line: Line, engine: ContinuousEngine, held: Held
) -> None:
    line.announce(2)
    line.sync.load(2)
    held.go()
    line.sync.load(1)  # an evaluation wants the one that serves again
    assert engine.loads == [1]


def test_a_process_far_behind_the_newest_version_says_so(line: Line, held: Held) -> None:
    line.announce(9)
    assert line.sync.trouble == ""
    line.announce(10)
    assert line.sync.trouble == "version 1 serves, 9 behind the newest"


def test_what_unproven_weights_touched_is_sampled_anew(line: Line, engine: ContinuousEngine) -> None:
    line.announce(1)
    line.sync.load(1)
    engine.damaged.add(2)
    line.announce(2)
    line.sync.load(2)
    assert engine.restored == [1]


def test_the_first_version_serves_though_a_newer_one_came_while_it_was_fetched(
    line: Line, engine: ContinuousEngine
) -> None:
    line.sync._fetcher = held = Held()
    line.announce(0)
    line.sync.load(0)
    line.announce(1)
    held.go()
    line.sync.load(1)
    assert engine.loads == [0]
