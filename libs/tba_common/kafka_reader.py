"""All partitions of some topics, read by one process that keeps the offsets itself, in Postgres or a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from kafka import TopicPartition

from tba_common.brokers import Brokers
from tba_common.kafka_client import open_consumer, records_of
from tba_common.kafka_watch import LogWatch, Watchdog
from tba_common.record import Record


class Reader:
    """Not thread-safe. `offsets` holds the next offset to read by (topic, partition); missing: from the start.

    An offset beyond the end of a log, as after the broker lost it, counts as missing. When a log starts anew under
    a running reader its offsets go back to 0: keep the latest offset, never the largest.
    """

    def __init__(
        self, brokers: Brokers | str, run_id: str, topics: Sequence[str], offsets: Mapping[tuple[str, int], int]
    ) -> None:
        self._run_id = run_id
        self._client, partitions = open_consumer(brokers, topics)
        self._client.assign(partitions)
        for tp in partitions:
            if tp in offsets:
                self._client.seek(tp, offsets[tp])
            else:
                self._client.seek_to_beginning(tp)
        self._logs = LogWatch(self._client)
        self._watchdog = Watchdog(self._client)
        self.logs_lost = 0  # times that logs were found to start anew

    def poll(self, timeout_seconds: float, limit: int | None = None) -> list[Record]:
        """Records of this run, in order within a partition, waiting for the first; empty when none came.

        Raises:
            BrokerError: records wait and are not fetched, or no broker has answered for minutes.
        """
        polled = self._client.poll(timeout_ms=int(timeout_seconds * 1000), max_records=limit)
        self.logs_lost += bool(self._logs.rewind_lost())
        self._watchdog.look(time.monotonic(), got_records=bool(polled))
        return [record for record in records_of(polled) if record.belongs_to(self._run_id)]

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Read a partition from `offset` on."""
        self._client.seek(TopicPartition(topic, partition), offset)

    def close(self) -> None:
        """Disconnect. There is nothing to commit."""
        self._client.close(autocommit=False)
