"""A rollout that kills its scorer is found out, and nobody suffers for it in the end."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import contains
from pathlib import Path
from typing import Any

import pytest

from services.reward.journal import DEADLY, Journal, open_journal
from services.reward.scorer import Judgement
from services.reward.settings import RewardSettings
from services.reward.worker import Worker
from tba_common.kafka import Record
from tba_common.messages import Rollout
from tests.cli.local.processes import wait_until
from tests.reward.fakes import FakeBroker, FakeScorer
from tests.reward.rollouts import prompt, rollout
from tests.reward.test_worker import step_until, worker_of


def record(offset: int, value: bytes = b"rollout") -> Record:
    return Record("tba.rollouts.verifier", 0, offset, None, value, {})


def die(journal: Journal) -> None:
    """As the kernel ends a process: its files are closed and nothing runs."""
    os.close(journal._file)


@pytest.fixture
def broker(tmp_path: Path) -> FakeBroker:
    return FakeBroker(tmp_path)


@dataclass
class Watched(FakeScorer):
    """Tells when each rollout went in and came out."""

    seen: list[str] = field(default_factory=list)

    def score(self, rollout: Rollout, options: Mapping[str, Any]) -> Judgement:
        text = rollout.completions[0].text
        self.seen.append(f"{text} in")
        judgement = super().score(rollout, options)
        self.seen.append(f"{text} out")
        return judgement


def post(broker: FakeBroker, *texts: str) -> None:
    """These records and no others, from the first offset on: none was ever committed."""
    broker.records.clear()
    broker.posted = 0
    for issue, text in enumerate(texts, start=1):
        broker.post(rollout(text, of=prompt(issue_id=issue)))


def life(broker: FakeBroker, scorer: FakeScorer, *texts: str) -> Worker:
    """A process that finds these records."""
    post(broker, *texts)
    return worker_of(broker, scorer, parallel_rollouts=2)


def a_death_beside_others(broker: FakeBroker, *texts: str) -> None:
    gate = threading.Event()
    worker = life(broker, FakeScorer(gate=gate), *texts)
    worker.step()
    die(worker._journal)
    gate.set()


def test_what_a_process_died_with_is_visited_with_nothing_beside_it(broker: FakeBroker) -> None:
    a_death_beside_others(broker, "a", "b", "c", "d")  # a and b were in the scorer
    scorer = Watched()
    after = life(broker, scorer, "a", "b", "c", "d")
    step_until(after, lambda: len(broker.trajectories) == 4)
    assert scorer.seen[:4] == ["a in", "a out", "b in", "b out"]


def test_nothing_joins_a_visit_that_is_made_alone(broker: FakeBroker) -> None:
    a_death_beside_others(broker, "a")
    gate = threading.Event()
    scorer = Watched(gate=gate)
    after = life(broker, scorer, "a", "b", "c", "d")
    step_until(after, lambda: bool(scorer.seen))
    for _ in range(3):
        after.step()
    assert scorer.seen == ["a in"]
    assert len(broker.records) == 2  # two had been taken together, and no more are
    gate.set()
    step_until(after, lambda: len(broker.trajectories) == 4)


def test_a_visit_that_is_made_alone_joins_nothing(broker: FakeBroker) -> None:
    post(broker, "innocent", "suspect")
    before = broker.journal()
    before.begin(broker.records[1])
    die(before)
    gate = threading.Event()
    scorer = Watched(gate=gate)
    after = life(broker, scorer, "innocent", "suspect")
    step_until(after, lambda: bool(scorer.seen))
    for _ in range(3):
        after.step()
    assert scorer.seen == ["innocent in"]
    gate.set()
    step_until(after, lambda: len(broker.trajectories) == 2)


def test_whoever_was_scored_before_the_death_is_innocent(broker: FakeBroker) -> None:
    before = life(broker, FakeScorer(), "a")
    [visited] = broker.records
    step_until(before, lambda: bool(broker.trajectories))
    die(before._journal)
    assert broker.journal().deaths(visited) == 0


def test_a_visit_that_outlasts_the_grace_period_killed_nobody(broker: FakeBroker) -> None:
    class Slow(FakeScorer):
        def score(self, rollout: Rollout, options: Mapping[str, Any]) -> Judgement:
            wait_until(lambda: '"inside": []' in worker._journal._path.read_text())
            return super().score(rollout, options)

    worker = life(broker, Slow(), "a")
    worker.step()
    assert '"inside": ["tba.rollouts.verifier/0/0/' in worker._journal._path.read_text()
    worker.drain()
    assert len(broker.trajectories) == 1


def test_a_deadly_rollout_is_told_by_its_issue_and_never_visited_again(broker: FakeBroker) -> None:
    a_death_beside_others(broker, "deadly", "good")
    for _ in range(DEADLY - 1):
        gate = threading.Event()
        scorer = Watched(gate=gate)
        worker = life(broker, scorer, "deadly")
        worker.step()
        wait_until(partial(contains, scorer.seen, "deadly in"))
        assert len(scorer.seen) == 1
        die(worker._journal)
        gate.set()
    for _ in range(2):  # its offset was not committed, and it comes once more
        scorer = Watched()
        worker = life(broker, scorer, "deadly", "good")
        step_until(worker, lambda: bool(broker.trajectories))
        assert [(letter.issue_id, letter.reason) for letter in broker.dead] == [
            (1, "verifier died 3 times over this rollout, 2 with no other in it")
        ]
        assert scorer.seen == ["good in", "good out"]
        broker.sent.clear()
        die(worker._journal)


def test_a_rollout_that_came_out_alive_is_innocent(tmp_path: Path) -> None:
    before = Journal(tmp_path, "verifier")
    for offset in (0, 1):
        before.begin(record(offset))
    before.end(record(0))
    die(before)
    after = Journal(tmp_path, "verifier")
    assert (after.deaths(record(0)), after.deaths(record(1))) == (0, 1)
    after.begin(record(1))
    after.end(record(1))
    die(after)
    assert Journal(tmp_path, "verifier").deaths(record(1)) == 0


def test_a_process_that_ends_in_order_leaves_no_suspect_and_no_file(tmp_path: Path) -> None:
    with Journal(tmp_path, "verifier") as before:
        before.begin(record(0))
    assert list(tmp_path.iterdir()) == []
    assert Journal(tmp_path, "verifier").deaths(record(0)) == 0


def test_another_rollout_in_the_same_place_is_not_suspected(tmp_path: Path) -> None:
    before = Journal(tmp_path, "verifier")
    before.begin(record(0))
    die(before)
    assert Journal(tmp_path, "verifier").deaths(record(0, b"of a new log")) == 0


def test_processes_that_live_side_by_side_have_journals_of_their_own(tmp_path: Path) -> None:
    one, other = Journal(tmp_path, "verifier"), Journal(tmp_path, "verifier")
    one.begin(record(0))
    other.begin(record(1))
    for journal in (one, other):
        die(journal)
    found = [Journal(tmp_path, "verifier") for _ in range(2)]
    assert [[journal.deaths(record(offset)) for offset in (0, 1)] for journal in found] == [[1, 0], [0, 1]]


def test_a_journal_that_is_no_journal_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "verifier.0").write_text('{"inside": 7}\n')
    assert Journal(tmp_path, "verifier").deaths(record(0)) == 0
    assert "cannot be read" in caplog.text


def test_a_place_that_somebody_else_laid_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"tba-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="expected a directory of user"):
        open_journal("tba-reward-verifier", RewardSettings())
