"""The wire in one import. These files, and no others, know kafka-python; all its traps are handled behind them.

Bytes in, `Record`s out; at-least-once delivery, offsets committed after the side effect.
"""

from __future__ import annotations

from tba_common.kafka_client import BrokerError, create_topics, wait_for_topics
from tba_common.kafka_consumer import Consumer
from tba_common.kafka_producer import DeliveryError, Producer
from tba_common.kafka_reader import Reader
from tba_common.record import Record

__all__ = [
    "BrokerError",
    "Consumer",
    "DeliveryError",
    "Producer",
    "Reader",
    "Record",
    "create_topics",
    "wait_for_topics",
]
