"""The topics, as data."""

from __future__ import annotations

import re
from typing import Final

import pytest

from tba_common.kafka_client import RECORD_BYTES
from tba_common.tasks import SCORER_KINDS
from tba_common.topics import BATCHES, WEIGHTS, Topic, rollouts, topics_for

SCORERS: Final = (*SCORER_KINDS, "reward_model.gold-2")
TOPICS: Final = topics_for(SCORERS)


def test_topics_have_different_names_of_one_form() -> None:
    names = [topic.name for topic in TOPICS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"tba\.[a-z_]+s(\.[a-z_]+(\.[a-z0-9-]+)?)?", name) for name in names)


@pytest.mark.parametrize("scorer", SCORERS)
def test_every_scorer_has_a_topic(scorer: str) -> None:
    assert rollouts(scorer) in {topic.name for topic in TOPICS}


def test_batches_lie_in_one_partition_because_they_are_trained_in_order() -> None:
    assert BATCHES.partitions == 1


def test_only_the_newest_weights_of_a_run_need_to_be_kept() -> None:
    assert [topic for topic in TOPICS if topic.compact] == [WEIGHTS]


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_a_topic_takes_every_record_a_producer_may_send(topic: Topic) -> None:
    assert topic.max_message_bytes >= RECORD_BYTES
