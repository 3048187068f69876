"""Dead letters: what they carry, and when there are too many of them."""

from __future__ import annotations

import threading
from typing import Any, Final

import pytest

from tba_common import topics
from tba_common.codec import encode
from tba_common.delivery import DeadLetters, TooManyBad, may_outlive_the_broker
from tba_common.kafka import BrokerError, DeliveryError, Producer, Record
from tba_common.messages import DeadLetter, Message, Prompt, Resumed, Rollout, Trajectories
from tba_common.tasks import Sampling, ScorerTerm

PROMPT: Final = Prompt(
    run_id="main",
    issue_id=17,
    task_id=1,
    prompt_id=1,
    text="1+1=",
    sampling=Sampling(),
    reward=(ScorerTerm(scorer="verifier"),),
)
ROLLOUT: Final = Rollout(
    run_id="main",
    prompt=PROMPT,
    prompt_token_ids=[1],
    completions=(),
    temperature=1.0,
    top_p=1.0,
    generator="generator-0",
    remaining=("verifier",),
)


class Outbox(Producer):
    """A producer that keeps what it is given."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, Message]] = []
        self.delivered: list[tuple[str, Message]] = []

    def send(self, topic: str, message: Message, **_options: Any) -> None:
        self.waiting.append((topic, message))

    def flush(self, timeout_seconds: float = 30.0) -> None:
        self.delivered += self.waiting
        self.waiting = []


def record_of(message: Message) -> Record:
    schema, body = encode(message)
    return Record("tba.prompts", 3, 42, None, body, {"schema": schema.encode(), "run": b"main"})


def rejected(record: Record, reason: str = "too long") -> DeadLetter:
    outbox = Outbox()
    DeadLetters(outbox, "main", "tba-generator").reject(record, reason)
    ((topic, letter),) = outbox.delivered
    assert topic == topics.DEAD_LETTERS.name
    assert isinstance(letter, DeadLetter)
    return letter


def test_a_dead_letter_tells_who_rejected_what_and_why() -> None:
    record = record_of(PROMPT)
    assert rejected(record) == DeadLetter(
        run_id="main",
        service="tba-generator",
        reason="too long",
        topic="tba.prompts",
        partition=3,
        offset=42,
        schema_header="prompt/2",
        issue_id=17,
        body=record.value,
    )


@pytest.mark.parametrize(
    "message",
    [PROMPT, ROLLOUT, Trajectories(run_id="main", rollout=ROLLOUT, rewards=[])],
    ids=["prompt", "rollout", "trajectories"],
)
def test_the_issue_is_found_in_every_message_that_belongs_to_one(message: Message) -> None:
    assert rejected(record_of(message)).issue_id == 17


@pytest.mark.parametrize(
    "record",
    [
        record_of(Resumed(run_id="main", batch_id=1, step=1)),
        Record("tba.prompts", 0, 0, None, b"noise", {"schema": b"prompt/1"}),
        Record("tba.prompts", 0, 0, None, b"noise", {"schema": b"\xff"}),
        Record("tba.prompts", 0, 0, None, b"noise", {}),
    ],
    ids=["no issue", "does not decode", "odd schema", "no schema"],
)
def test_a_message_without_a_readable_issue_is_rejected_all_the_same(record: Record) -> None:
    letter = rejected(record)
    assert letter.issue_id is None
    assert letter.body == record.value


def test_a_dead_letter_fits_a_record_whatever_it_carries() -> None:
    assert len(rejected(Record("tba.prompts", 0, 0, None, bytes(4 << 20), {})).body) == 1 << 20
    odd = Record("tba.prompts", 0, 0, None, b"", {"schema": b"x" * (3 << 20)})
    assert len(encode(rejected(odd, "y" * (3 << 20)))[1]) < 10_000


def test_too_many_bad_messages_in_a_row_are_our_own_fault() -> None:
    outbox = Outbox()
    dead_letters = DeadLetters(outbox, "main", "tba-generator", limit_in_a_row=2)
    record = record_of(PROMPT)
    dead_letters.reject(record, "bad")
    dead_letters.reject(record, "bad")
    with pytest.raises(TooManyBad, match="3 messages in a row could not be handled, the last: worse"):
        dead_letters.reject(record, "worse")
    assert len(outbox.delivered) == 2


def test_one_good_message_breaks_the_row_of_bad_ones() -> None:
    outbox = Outbox()
    dead_letters = DeadLetters(outbox, "main", "tba-generator", limit_in_a_row=1)
    for _ in range(3):
        dead_letters.reject(record_of(PROMPT), "bad")
        dead_letters.handled()
    assert len(outbox.delivered) == 3


def test_a_task_full_of_bad_messages_does_not_stop_those_that_are_served() -> None:
    outbox = Outbox()
    dead_letters = DeadLetters(outbox, "main", "tba-generator", limit_in_a_row=2)
    dead_letters.handled(task_id=2)
    for _ in range(5):
        dead_letters.reject(record_of(PROMPT), "bad")
    assert len(outbox.delivered) == 5


@pytest.mark.parametrize(
    "other",
    [record_of(PROMPT.model_copy(update={"task_id": 2})), Record("tba.prompts", 0, 0, None, b"noise", {})],
    ids=["another task", "unreadable"],
)
def test_a_row_that_is_not_of_one_task_alone_is_our_own_fault(other: Record) -> None:
    dead_letters = DeadLetters(Outbox(), "main", "tba-generator", limit_in_a_row=2)
    dead_letters.handled(task_id=2)
    dead_letters.reject(record_of(PROMPT), "bad")
    dead_letters.reject(record_of(PROMPT), "bad")
    with pytest.raises(TooManyBad):
        dead_letters.reject(other, "bad")


def test_a_task_that_was_served_itself_vouches_for_nobody() -> None:
    dead_letters = DeadLetters(Outbox(), "main", "tba-generator", limit_in_a_row=1)
    dead_letters.handled(task_id=PROMPT.task_id)
    dead_letters.reject(record_of(PROMPT), "bad")
    with pytest.raises(TooManyBad):
        dead_letters.reject(record_of(PROMPT), "bad")


@pytest.mark.parametrize("fault", [BrokerError("gone"), DeliveryError("gone")])
def test_a_broker_that_is_gone_is_no_fault_of_a_process_that_stops_and_of_no_other(
    fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    stop = threading.Event()
    with pytest.raises(type(fault)), may_outlive_the_broker(stop):
        raise fault
    stop.set()
    with may_outlive_the_broker(stop):
        raise fault
    (line,) = caplog.records
    assert line.reason == "gone"
    with pytest.raises(TooManyBad), may_outlive_the_broker(stop):
        raise TooManyBad
