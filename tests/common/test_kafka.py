"""What the door adds to kafka-python, without a broker: records, and the watch over silence and lost logs."""

from __future__ import annotations

from typing import Final
from uuid import UUID, uuid4

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError, RetriableError, UnknownError, for_code
from kafka.structs import ConsumerGroupMetadata, MemberState

from tba_common import kafka_client
from tba_common.codec import BadMessage
from tba_common.kafka import BrokerError, Record
from tba_common.kafka_watch import LogWatch, Watchdog

HERE: Final = TopicPartition("tba.prompts", 0)
LATER: Final = 1e9  # seconds: longer than any patience


class Log:
    """A kafka-python consumer of one partition, as far as the watch looks at it. It is also its `_cluster`."""

    def __init__(self, *, position: int = 0, end: int = 0) -> None:
        self.offset, self.end = position, end
        self.id: UUID | None = uuid4()
        self.reachable = True
        self.pauses: set[TopicPartition] = set()
        self.state: MemberState = MemberState.STABLE
        self._cluster = self

    def assignment(self) -> set[TopicPartition]:
        return {HERE}

    def paused(self) -> set[TopicPartition]:
        return self.pauses

    def topic_id(self, _topic: str) -> UUID | None:
        return self.id

    def position(self, _partition: TopicPartition, timeout_ms: int) -> int:
        return self.offset

    def highwater(self, _partition: TopicPartition) -> int:
        return self.end

    def end_offsets(self, partitions: list[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
        if not self.reachable:
            raise KafkaTimeoutError
        return dict.fromkeys(partitions, self.end)

    def seek_to_beginning(self, *_partitions: TopicPartition) -> None:
        self.offset = 0

    def group_metadata(self) -> ConsumerGroupMetadata:
        return ConsumerGroupMetadata(group_id="g", state=self.state)


@pytest.fixture(autouse=True)
def _look_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tba_common.kafka_watch._LOOK_SECONDS", -1.0)


def test_a_record_without_a_schema_is_a_bad_message() -> None:
    with pytest.raises(BadMessage, match=r"no schema header: expected one such as rollout/1, got \['run'\]"):
        Record("tba.prompts", 0, 0, None, b"", {"run": b"main"}).message()


def test_a_record_belongs_to_the_run_of_its_header() -> None:
    record = Record("tba.prompts", 0, 0, None, b"", {"run": b"main"})
    assert record.belongs_to("main")
    assert not record.belongs_to("other")


def test_a_missing_crc32c_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    kafka_client._warn_without_crc32c.__wrapped__()
    assert "crc32c is missing" in caplog.text


def test_a_log_that_ends_before_the_stored_offset_is_read_from_its_start() -> None:
    log = Log(position=500, end=20)
    assert LogWatch(log).rewind_lost() == {HERE}
    assert log.offset == 0


def test_an_offset_within_the_log_is_kept() -> None:
    log = Log(position=20, end=20)
    assert LogWatch(log).rewind_lost() == set()
    assert log.offset == 20


def test_a_high_watermark_that_lags_is_not_taken_for_a_lost_log() -> None:
    log = Log(position=500, end=20)
    log.reachable = False  # ListOffsets does not answer while a new leader catches up
    watch = LogWatch(log)
    assert watch.rewind_lost() == set()
    log.reachable, log.end = True, 500
    assert watch.rewind_lost() == set()
    assert log.offset == 500


def test_a_topic_created_anew_is_read_from_its_start_even_if_it_is_longer_already() -> None:
    log = Log(position=20, end=20)
    watch = LogWatch(log)
    watch.rewind_lost()
    log.id, log.end = uuid4(), 100
    assert watch.rewind_lost() == {HERE}
    assert log.offset == 0
    assert watch.rewind_lost() == set()


def test_a_topic_that_is_missing_for_a_while_is_remembered() -> None:
    log = Log(position=20, end=20)
    watch = LogWatch(log)
    watch.rewind_lost()
    before, log.id = log.id, None
    assert watch.rewind_lost() == set()
    log.id = before
    assert watch.rewind_lost() == set()
    log.id = uuid4()
    assert watch.rewind_lost() == {HERE}


def test_silence_with_nothing_to_read_is_no_alarm() -> None:
    watchdog = Watchdog(Log(position=20, end=20))
    for turn in range(5):
        watchdog.look(LATER * (turn + 1), got_records=False)


def test_records_that_wait_and_do_not_arrive_end_the_process() -> None:
    watchdog = Watchdog(Log(position=10, end=20))
    watchdog.look(LATER, got_records=False)
    with pytest.raises(BrokerError, match=r"records wait but do not arrive: tba\.prompts/0"):
        watchdog.look(2 * LATER, got_records=False)


def test_records_of_a_paused_partition_may_wait() -> None:
    log = Log(position=10, end=20)
    log.pauses = {HERE}
    watchdog = Watchdog(log)
    for turn in range(5):
        watchdog.look(LATER * (turn + 1), got_records=False)


def test_a_slow_log_that_still_moves_is_no_alarm() -> None:
    log = Log(position=10, end=20)
    watchdog = Watchdog(log)
    for turn in range(5):
        watchdog.look(LATER * (turn + 1), got_records=False)
        log.offset += 1


def test_a_broker_that_never_comes_back_ends_the_process() -> None:
    log = Log()
    log.reachable = False
    with pytest.raises(BrokerError, match="no broker answered for 300 s"):
        Watchdog(log).look(LATER, got_records=False)


def test_a_group_that_does_not_settle_ends_the_process() -> None:
    log = Log()
    log.state = MemberState.REBALANCING
    with pytest.raises(BrokerError, match="the consumer group did not settle within 120 s"):
        Watchdog(log, in_group=True).look(LATER, got_records=True)


def test_a_process_that_shares_statically_has_no_group_to_settle() -> None:
    log = Log()
    log.state = MemberState.UNJOINED
    watchdog = Watchdog(log)
    watchdog.look(LATER, got_records=True)
    watchdog.look(2 * LATER, got_records=True)


def test_the_library_tries_again_what_a_broker_cannot_explain() -> None:
    assert issubclass(for_code(UnknownError.errno), RetriableError)
