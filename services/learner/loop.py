"""The learner's line: batches in order, one optimiser step each, weights out every few steps.

Law: one batch, one step, one report of it. What survives a crash is the checkpoint; batches after it are read
again and trained again. The newest reports are said again wherever the broker may have lost them. Versions only ever go
up: weights that were rolled back are published under a new number.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from services.learner.batches import Batch, BatchAssembler
from services.learner.checkpoint import CheckpointStore, Progress
from services.learner.settings import LearnerSettings
from services.learner.update import Update, Updater
from tba_common import metrics
from tba_common.codec import BadMessage
from tba_common.delivery import DeadLetters
from tba_common.kafka import Producer, Reader, Record
from tba_common.messages import Group, Resumed, Step, Weights
from tba_common.topics import BATCHES, MAX_BATCHES_IN_FLIGHT, STEPS, WEIGHTS
from tba_common.weights import WeightsError, WeightStore

ANNOUNCE_SECONDS: Final = 5.0  # a broker that forgot, and a generator that came late, hear of the weights again
MAX_SKIPPED_IN_A_ROW: Final = 10
_POLL_SECONDS: Final = 0.2
_DELIVERY_SECONDS: Final = 90.0  # a broker may be away for a while: a crash would cost all steps since the checkpoint

log = logging.getLogger(__name__)


class Diverged(Exception):
    """Loss or gradient was not finite for many steps in a row."""


class Learner:
    """The state of training. `start`, then `step` until `finished`, then `close`.

    Made, it stands where the newest checkpoint left off, and the weights it has loaded are a stored version.
    """

    def __init__(
        self,
        settings: LearnerSettings,
        updater: Updater,
        producer: Producer,
        dead_letters: DeadLetters,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._updater = updater
        self._producer = producer
        self._dead_letters = dead_letters
        self._clock = clock
        self._store = WeightStore(settings.weights_url)
        self._checkpoints = CheckpointStore(settings.checkpoint_directory)
        self._progress = self._checkpoints.load(updater) or Progress()
        self._saved = self._progress
        self._assembler = BatchAssembler(self._progress.batch_id)
        self._next_offset = self._progress.next_offset
        self._weights = self._first_weights()
        self._announced_at = float("-inf")
        self._waiting_since = clock()
        self._skipped_in_a_row = 0
        self._logs_lost = 0
        self._sent_again = False  # whether a batch came that was trained already

    @property
    def offsets(self) -> dict[tuple[str, int], int]:
        """Where reading `tba.batches` must begin."""
        return {(BATCHES.name, 0): self._progress.next_offset}

    @property
    def finished(self) -> bool:
        """Whether the last step of a bounded run was taken."""
        return 0 < self._settings.max_steps <= self._progress.step

    def start(self) -> None:
        """Say where training goes on, and with which weights."""
        progress = self._progress
        log.info("resumed", extra={"step": progress.step, "batch_id": progress.batch_id})
        self._say_where()
        self._announce()
        self._producer.flush(_DELIVERY_SECONDS)

    def step(self, reader: Reader) -> bool:
        """Read, and train the next batch if it is whole; returns whether it was."""
        if self._clock() - self._announced_at >= ANNOUNCE_SECONDS:
            self._announce()
        batch = self._assembler.take()
        if batch is None:
            self._read(reader)
            batch = self._assembler.take()
        if batch is None:
            return False
        self._train(batch)
        return True

    def close(self) -> None:
        """Leave everything on disk and on the wire."""
        if self._weights.step != self._progress.step:
            self._publish()
        if self._saved != self._progress:
            self._save()
        self._producer.flush(_DELIVERY_SECONDS)

    def _read(self, reader: Reader) -> None:
        """Take in what came; say where we are if the buffer seems not to have heard it.

        It sends again what it has seen no report of, and it sends what is later when it does not know that this process
        began further back. The broker may have lost what was said.
        """
        records = reader.poll(_POLL_SECONDS)
        for record in records:
            self._receive(record)
        is_ahead = bool(records) and self._assembler.is_passed_over
        if self._sent_again or is_ahead or reader.logs_lost != self._logs_lost:
            self._logs_lost, self._sent_again = reader.logs_lost, False
            self._say_where()

    def _receive(self, record: Record) -> None:
        self._next_offset = record.offset + 1
        try:
            message = record.message()
            if not isinstance(message, Group):
                raise BadMessage(f"{record.topic} expected Group, got {type(message).__name__}")
            self._assembler.add(message, record.offset)
            self._sent_again |= message.batch_id <= self._progress.batch_id
        except BadMessage as error:
            self._dead_letters.reject(record, str(error))  # the buffer sends the batch again as it was
        else:
            self._dead_letters.handled()

    def _train(self, batch: Batch) -> None:
        began = self._clock()
        wait_seconds = began - self._waiting_since
        step = self._progress.step + 1
        update = self._updater.update(batch.groups, step)
        self._count_skipped(update, step)
        report = self._report(batch, update, step, self._clock() - began, wait_seconds)
        unheard = (*self._progress.reports, report)[-MAX_BATCHES_IN_FLIGHT:]
        self._progress = Progress(step, batch.batch_id, self._assembler.resume_offset(self._next_offset), unheard)
        # Delivered before it is saved: what a checkpoint covers is never trained again.
        self._producer.send(STEPS.name, report)
        self._producer.flush(_DELIVERY_SECONDS)
        if step % self._settings.publish_every == 0:
            self._publish()
        if step % self._settings.checkpoint_every == 0:
            self._save()
        self._waiting_since = self._clock()

    def _count_skipped(self, update: Update, step: int) -> None:
        if not update.skipped:
            self._skipped_in_a_row = 0
            return
        metrics.LEARNER_SKIPPED_STEPS.inc()
        self._skipped_in_a_row += 1
        log.warning("step not taken: loss or gradient is not finite", extra={"step": step})
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise Diverged(f"{self._skipped_in_a_row} steps in a row without a finite loss and gradient")

    def _report(self, batch: Batch, update: Update, step: int, step_seconds: float, wait_seconds: float) -> Step:
        ages = Counter(self._weights.version - draw.policy_version for g in batch.groups for draw in g.draws)
        report = Step(
            run_id=self._settings.run_id,
            step=step,
            batch_id=batch.batch_id,
            policy_version=self._weights.version,
            checkpoint_batch_id=self._saved.batch_id,
            loss=update.loss,
            reward=update.reward,
            log_z=update.log_z,
            log_ratio=update.log_ratio,
            grad_norm=update.grad_norm,
            beta=update.beta,
            learning_rate=update.learning_rate,
            trajectories=update.trajectories,
            tokens=update.tokens,
            staleness_versions=dict(sorted(ages.items())),
            step_seconds=step_seconds,
            wait_seconds=wait_seconds,
            skipped=update.skipped,
        )
        _measure(report)
        return report

    def _first_weights(self) -> Weights:
        """The announcement of the weights that are loaded: the newest stored version if it holds them, or a new one."""
        stored = self._store.versions()
        if stored and self._is_loaded(stored[-1]):
            return self._store.announce(self._settings.run_id, stored[-1], self._settings.publish_every)
        return self._write_version(stored[-1] + 1 if stored else 0)

    def _is_loaded(self, version: int) -> bool:
        """Whether a stored version holds the weights that are loaded; the canary tells, where steps are equal."""
        try:
            found = self._store.find(version)
        except WeightsError as error:
            log.warning("stored version is damaged", extra={"policy_version": version, "reason": str(error)})
            return False
        return found.step == self._progress.step and found.canary == self._updater.policy.canary()

    def _publish(self) -> None:
        self._weights = self._write_version(self._weights.version + 1)
        self._announce()
        self._store.collect(self._settings.keep_versions)

    def _write_version(self, version: int) -> Weights:
        policy = self._updater.policy
        weights = self._store.publish(
            self._settings.run_id,
            version,
            self._progress.step,
            policy.save,
            canary=policy.canary(),
            steps_per_version=self._settings.publish_every,
        )
        log.info("weights published", extra={"policy_version": version, "step": self._progress.step})
        return weights

    def _say_where(self) -> None:
        """Say the newest reports again, in order: the broker may have lost them before the buffer heard them."""
        for report in self._progress.reports:
            self._producer.send(STEPS.name, report)
        where = Resumed(run_id=self._settings.run_id, batch_id=self._progress.batch_id, step=self._progress.step)
        self._producer.send(STEPS.name, where)

    def _announce(self) -> None:
        metrics.LEARNER_POLICY_VERSION.set(self._weights.version)
        self._producer.send(WEIGHTS.name, self._weights, key=self._settings.run_id)
        self._announced_at = self._clock()

    def _save(self) -> None:
        self._checkpoints.save(self._progress, self._updater)
        self._saved = self._progress


def _measure(report: Step) -> None:
    metrics.LEARNER_STEP_SECONDS.observe(report.step_seconds)
    metrics.LEARNER_WAIT_SECONDS.observe(report.wait_seconds)
    metrics.LEARNER_LOSS.set(report.loss)
    metrics.LEARNER_REWARD.set(report.reward)
    for age, trajectories in report.staleness_versions.items():
        for _ in range(trajectories):
            metrics.LEARNER_STALENESS.observe(age)
