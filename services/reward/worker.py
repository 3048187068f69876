"""rollout -> trajectories: takes rollouts, has them scored, sends them on along their slip.

A rollout is done when what became of it is delivered, never before: a process that dies loses time, not rollouts.
What cannot be scored goes to the dead letters with the reason; it never becomes a zero.
"""

from __future__ import annotations

import logging
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from types import TracebackType
from typing import Final

from services.reward.grading import visit
from services.reward.scorer import Scorer, ScoringFailed
from services.reward.slip import destination
from tba_common import metrics
from tba_common.codec import BadMessage
from tba_common.delivery import DeadLetters
from tba_common.kafka import Consumer, Producer, Record
from tba_common.messages import Rollout, Trajectories

_IDLE_SECONDS: Final = 0.25
_BUSY_SECONDS: Final = 0.02  # while there is room for more, look for more this often
_DELIVERY_SECONDS: Final = 90.0  # a broker may be away for a while, but liveness gives up after 120 s

log = logging.getLogger(__name__)


class Worker:
    """The loop of `tba-reward-<scorer>`, one `step` at a time. A context manager: its threads end with it."""

    def __init__(
        self,
        *,
        scorer: Scorer,
        consumer: Consumer,
        producer: Producer,
        dead_letters: DeadLetters,
        parallel_rollouts: int,
    ) -> None:
        self._scorer = scorer
        self._consumer = consumer
        self._producer = producer
        self._dead_letters = dead_letters
        self._parallel_rollouts = parallel_rollouts
        self._threads = ThreadPoolExecutor(parallel_rollouts, thread_name_prefix=scorer.name)
        self._in_flight: dict[Future[Rollout | Trajectories], Record] = {}

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    def step(self) -> None:
        """One turn: start what there is room for, send on what is scored."""
        room = self._parallel_rollouts - len(self._in_flight)
        if room:
            for record in self._consumer.take(room, 0.0 if self._in_flight else _IDLE_SECONDS):
                self._in_flight[self._threads.submit(_scored, self._scorer, record)] = record
            room = self._parallel_rollouts - len(self._in_flight)
        if self._in_flight:
            self._settle(_BUSY_SECONDS if room else _IDLE_SECONDS)
        else:
            self._producer.flush(_DELIVERY_SECONDS)  # nothing to do: see that nothing sent was lost

    def drain(self) -> None:
        """Finish what is in the scorer; what has not started stays uncommitted and is another's to take."""
        self._consumer.stop_taking()
        while self._in_flight:
            self._settle(_IDLE_SECONDS)
        self._producer.flush(_DELIVERY_SECONDS)
        log.info("drained")

    def _settle(self, timeout_seconds: float) -> None:
        finished, _ = wait(self._in_flight, timeout_seconds, FIRST_COMPLETED)
        for future in finished:
            record = self._in_flight.pop(future)
            try:
                self._send_on(record, future.result())
            except (BadMessage, ScoringFailed) as fault:
                self._dead_letters.reject(record, str(fault))
                self._consumer.done(record)

    def _send_on(self, record: Record, message: Rollout | Trajectories) -> None:
        topic, key = destination(message)
        self._producer.send(topic, message, key=key, on_delivery=partial(self._consumer.done, record))
        self._dead_letters.handled()
        rollout = message.rollout if isinstance(message, Trajectories) else message
        metrics.REWARD_SCORED.labels(self._scorer.name).inc(len(rollout.completions))
        metrics.REWARD_SECONDS.labels(self._scorer.name).observe(rollout.scores[-1].seconds)


def _scored(scorer: Scorer, record: Record) -> Rollout | Trajectories:
    """Decode and score one record, on a thread of its own."""
    rollout = record.message()
    if not isinstance(rollout, Rollout):
        raise BadMessage(f"expected a rollout, got a {type(rollout).__name__.lower()}")
    return visit(scorer, rollout)
