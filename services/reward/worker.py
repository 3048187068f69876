"""rollout -> trajectories: takes rollouts, has them scored, sends them on along their slip.

A rollout is done when what became of it is delivered, never before: a process that dies loses time, not rollouts.
What cannot be scored never becomes a zero. It is tried again where that may help, and else goes to the dead letters
with the reason, as a whole: the rest of a group without the completion that hangs would be another group.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from services.reward.grading import visit
from services.reward.journal import DEADLY, Journal
from services.reward.retries import Visit, Waiting, late_visit, next_round, wait_here
from services.reward.scorer import PassingFault, Scorer, ScorerUnfit, ScoringFailed
from services.reward.settings import RewardSettings
from services.reward.slip import destination
from services.reward.slots import Overrun, Slots
from tba_common import metrics
from tba_common.codec import BadMessage
from tba_common.delivery import DeadLetters
from tba_common.kafka import Consumer, Producer, Record
from tba_common.messages import Rollout, Trajectories
from tba_common.topics import retries

_IDLE_SECONDS: Final = 0.25
_BUSY_SECONDS: Final = 0.02  # while there is room for more, look for more this often
_DELIVERY_SECONDS: Final = 90.0  # a broker may be away for a while, but liveness gives up after 120 s

log = logging.getLogger(__name__)


class Worker:
    """The loop of `tba-reward-<scorer>`, one `step` at a time."""

    def __init__(
        self,
        *,
        scorer: Scorer,
        consumer: Consumer,
        retry_consumer: Consumer,
        producer: Producer,
        dead_letters: DeadLetters,
        journal: Journal,
        settings: RewardSettings,
        clock: Callable[[], float] = time.time,
        luck: Callable[[], float] = random.random,
    ) -> None:
        self._scorer = scorer
        self._consumer = consumer
        self._retry_consumer = retry_consumer
        self._producer = producer
        self._dead_letters = dead_letters
        self._journal = journal
        self._settings = settings
        self._clock, self._luck = clock, luck
        self._slots = Slots[Visit, Rollout | Trajectories](
            scorer.name, settings.parallel_rollouts, settings.visit_limit_seconds
        )
        self._waiting = Waiting()
        self._held: deque[Visit] = deque()  # taken, and behind a visit that is made with nothing beside it
        self._alone: Visit | None = None  # such a visit, while it is in the scorer
        self._retrying = 0  # visits in the scorer that are not the first of their rollout
        self._draining = False

    def step(self) -> None:
        """One turn: start what there is room for, send on what is scored."""
        self._start_held()
        self._start_again()
        if self._room:
            patience = 0.0 if self._slots else _IDLE_SECONDS
            for record in self._consumer.take(self._room, patience):
                self._start(Visit(record))
        if self._slots:
            self._settle(_BUSY_SECONDS if self._room else _IDLE_SECONDS)
        else:
            self._producer.flush(_DELIVERY_SECONDS)  # nothing to do: see that nothing sent was lost

    def drain(self) -> None:
        """Finish what is in the scorer; what waits or has not started stays uncommitted and is another's to take."""
        self._draining = True
        self._consumer.stop_taking()
        self._retry_consumer.stop_taking()
        self._journal.forget()  # a visit that outlasts the grace period killed nobody
        while self._slots:
            self._settle(_IDLE_SECONDS)
        self._producer.flush(_DELIVERY_SECONDS)
        log.info("drained", extra={"handed_back": len(self._waiting) + len(self._held)})

    @property
    def _room(self) -> int:
        """How many more visits may start; none while one is made with nothing beside it, or waits to be."""
        return 0 if self._held or self._alone else self._slots.room

    def _start_again(self) -> None:
        """Start the visits whose time has come, in at most half of the room: the others keep their rate."""
        now = self._clock()
        for record in self._retry_consumer.take(self._settings.window, 0.0):
            self._waiting.put(*late_visit(record, now))
        room = min(self._room, max(1, self._settings.parallel_rollouts // 2) - self._retrying)
        for again in self._waiting.due(now, room):
            self._start(again)

    def _start(self, attempt: Visit) -> None:
        self._held.append(attempt)
        self._start_held()

    def _start_held(self) -> None:
        """Start what was taken, in order.

        What a process died with goes in when nothing else is there, and nothing joins it. What is deadly never does.
        """
        while self._held and self._slots.room and self._alone is None:
            deaths = self._journal.deaths(self._held[0].record)
            if 0 < deaths < DEADLY and self._slots:
                return
            attempt = self._held.popleft()
            if deaths >= DEADLY:
                name = self._scorer.name
                self._reject(attempt, f"{name} died {deaths} times over this rollout, {deaths - 1} with no other in it")
                continue
            self._alone = attempt if deaths else None
            self._journal.begin(attempt.record)
            self._slots.start(attempt, partial(_scored, self._scorer, attempt))
            self._retrying += attempt.attempts > 0

    def _settle(self, timeout_seconds: float) -> None:
        for attempt, future in self._slots.ended(timeout_seconds):
            self._retrying -= attempt.attempts > 0
            self._journal.end(attempt.record)
            if attempt is self._alone:
                self._alone = None
            match failure := future.exception():
                case None:
                    self._send_on(attempt, future.result())
                case BadMessage() | ScoringFailed():
                    self._reject(attempt, str(failure))
                case Overrun():
                    self._reject(attempt, f"{self._scorer.name} {failure}")
                case PassingFault():
                    self._try_again(attempt.failed, str(failure))
                case ScorerUnfit():
                    raise failure
                case _:
                    # What the scorer did not expect may have left it broken: a new process starts, in which the
                    # rollout comes late, behind all others, and in the end not at all.
                    self._send_round(attempt.failed, f"{self._scorer.name} crashed: {failure!r}")
                    self._producer.flush(_DELIVERY_SECONDS)
                    raise failure

    def _send_on(self, attempt: Visit, message: Rollout | Trajectories) -> None:
        topic, key = destination(message)
        rollout = message.rollout if isinstance(message, Trajectories) else message
        if not self._send(attempt, topic, message, key):
            return
        self._dead_letters.handled(rollout.prompt.task_id)
        metrics.REWARD_SCORED.labels(self._scorer.name).inc(len(rollout.completions))
        metrics.REWARD_SECONDS.labels(self._scorer.name).observe(rollout.scores[-1].seconds)

    def _try_again(self, attempt: Visit, reason: str) -> None:
        if self._draining:
            return  # uncommitted, it comes again elsewhere
        metrics.REWARD_RETRIES.labels(self._scorer.name).inc()
        wait_seconds = wait_here(attempt, self._luck())
        # Those that wait are in hand; were they many, there would be no room in the window for others.
        if wait_seconds is not None and len(self._waiting) < self._settings.window // 2:
            self._waiting.put(attempt, self._clock() + wait_seconds)
        else:
            self._send_round(attempt, reason)

    def _send_round(self, attempt: Visit, reason: str) -> None:
        """Send a rollout to the retry topic; to the dead letters when it was there often enough."""
        retry = next_round(
            attempt,
            self._clock(),
            self._luck(),
            rounds=self._settings.retry_rounds,
            first_seconds=self._settings.retry_seconds,
        )
        rollout = attempt.record.message()
        if retry is None or not isinstance(rollout, Rollout):
            self._reject(attempt, f"{reason} ({attempt.attempts} attempts)")
            return
        late = rollout.model_copy(update={"retry": retry})
        if self._send(attempt, retries(self._scorer.name), late, str(rollout.prompt.prompt_id)):
            fields = {"issue_id": rollout.prompt.issue_id, "rounds": retry.rounds, "reason": reason}
            log.info("comes again later", extra=fields)

    def _send(self, attempt: Visit, topic: str, message: Rollout | Trajectories, key: str) -> bool:
        """Send what became of a record, which is done once that is delivered; reject one too large to send."""
        try:
            self._producer.send(topic, message, key=key, on_delivery=partial(self._done, attempt.record))
        except BadMessage as fault:
            self._reject(attempt, str(fault))
            return False
        return True

    def _reject(self, attempt: Visit, reason: str) -> None:
        self._dead_letters.reject(attempt.record, reason)
        self._done(attempt.record)

    def _done(self, record: Record) -> None:
        is_retry = record.topic == retries(self._scorer.name)
        (self._retry_consumer if is_retry else self._consumer).done(record)


def _scored(scorer: Scorer, attempt: Visit) -> Rollout | Trajectories:
    """Decode and score one record, on a thread of its own."""
    rollout = attempt.record.message()
    if not isinstance(rollout, Rollout):
        raise BadMessage(f"expected a rollout, got a {type(rollout).__name__.lower()}")
    return visit(scorer, rollout, attempts=attempt.attempts + 1)
