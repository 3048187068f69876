"""What is said is never kept waiting; what comes is gathered, and waits on the wire when the buffer says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.buffer.inbox import gather
from services.buffer.intake import Intake
from tba_common import topics
from tba_common.messages import Message
from tba_common.record import Record
from tests.buffer.world import prompt, record, step, trajectories


@dataclass
class Log:
    """A reader of one list; each poll takes some time."""

    records: deque[Record] = field(default_factory=deque)
    logs_lost: int = 0
    now: float = 0.0
    closed: bool = False

    def poll(self, timeout_seconds: float, limit: int | None = None) -> list[Record]:
        self.now += 0.02
        count = min(len(self.records), limit or len(self.records))
        return [self.records.popleft() for _ in range(count)]

    def close(self) -> None:
        self.closed = True


def log(messages: Iterable[Message], topic: topics.Topic) -> Log:
    return Log(deque(record(message, topic.name, offset=n) for n, message in enumerate(messages)))


def answers(count: int) -> Log:
    return log((trajectories(prompt(issue_id=n)) for n in range(count)), topics.TRAJECTORIES)


def test_answers_are_gathered_until_there_are_five_hundred_or_time_is_up() -> None:
    few = answers(3)
    assert gather(Intake(few, Log()), lambda: 0.0, wait_seconds=0.05).rows == 12
    many = answers(300)
    assert gather(Intake(many, Log()), lambda: 0.0, wait_seconds=0.05).rows in range(500, 532)
    slow = answers(300)
    inbox = gather(Intake(slow, Log()), lambda: slow.now, wait_seconds=0.05)
    assert slow.now < 0.1
    assert 0 < inbox.rows < 500


def test_offsets_are_those_after_the_last_record_gathered() -> None:
    source = answers(5)
    assert gather(Intake(source, Log()), lambda: 0.0, wait_seconds=0.05).offsets == {("tba.trajectories", 0): 5}


def test_a_report_is_taken_first_and_ends_the_gathering() -> None:
    source = Intake(answers(5), log([step(1)], topics.STEPS))
    inbox = gather(source, lambda: 0.0, wait_seconds=0.05)
    assert (len(inbox.reports), inbox.rows) == (1, 0)
    assert gather(source, lambda: 0.0, wait_seconds=0.05).rows == 20


def test_held_back_answers_stay_on_the_wire_while_reports_are_read() -> None:
    waiting, said = answers(5), log([step(1)], topics.STEPS)
    source = Intake(waiting, said)
    source.hold(True)
    assert len(gather(source, lambda: 0.0, wait_seconds=0.05).reports) == 1
    assert gather(source, lambda: 0.0, wait_seconds=0.05).offsets == {}
    assert len(waiting.records) == 5
    source.hold(False)
    assert gather(source, lambda: 0.0, wait_seconds=0.05).rows == 20


def test_both_readers_are_watched_and_closed() -> None:
    one, other = Log(logs_lost=1), Log(logs_lost=2)
    source = Intake(one, other)
    assert source.logs_lost == 3
    source.close()
    assert one.closed
    assert other.closed
