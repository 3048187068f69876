"""Everybody around a buffer process, in one thread: generators, scorers and a learner, on a real broker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any, Final

from tba_common import topics
from tba_common.kafka import Producer, Reader
from tba_common.messages import Group, Message, Prompt, Resumed, Weights
from tests.buffer.world import step
from tests.buffer.world import trajectories as answer

DEADLINE_SECONDS: Final = 180.0


class Others:
    """The generators, the scorers and the learner of a run, in one thread."""

    def __init__(self, servers: str, run_id: str, stack: ExitStack, *, errs: bool = False) -> None:
        self._run_id, self._errs = run_id, errs
        self._producer = stack.enter_context(closing(Producer(servers, run_id)))
        names = [topics.PROMPTS.name, topics.BATCHES.name]
        self._reader = stack.enter_context(closing(Reader(servers, run_id, names, {})))
        self.answered = 0
        self.groups: dict[tuple[int, int], list[int]] = {}  # (batch, index): trajectory ids
        self.changed: list[tuple[int, int]] = []  # groups that came twice and were not the same
        self.trained = 0
        self._say(topics.STEPS, Resumed(run_id=run_id, batch_id=0, step=0))
        self._publish()

    def turn(self) -> None:
        """Answer every order, train every batch that is complete."""
        for record in self._reader.poll(0.1):
            message = record.message()
            if isinstance(message, Prompt):
                self.answered += 1
                came = self._answer(message).model_copy(update={"run_id": self._run_id})
                self._producer.send(topics.TRAJECTORIES.name, came, key=str(message.prompt_id))
            elif isinstance(message, Group):
                self._hold(message)
        self._train()
        self._producer.flush()

    def _answer(self, order: Prompt) -> Message:
        """By default what was ordered; one that errs sometimes says what is no number, too old, or said before."""
        changes: dict[str, Any] = {"version": self.trained // 2}
        if self._errs:
            fate = order.issue_id % 8
            changes |= {"rewards": [math.nan, 1.0, 0.0, 1.0]} if fate == 1 else {}
            changes |= {"version": max(0, self.trained // 2 - 40)} if fate == 3 else {}
            changes |= {"tokens": [[7], [7], [8], [9]]} if fate == 5 else {}
        return answer(order, **changes)

    def has_trained(self, batches: int) -> bool:
        """Say whether this many batches are trained."""
        return self.trained >= batches

    def _hold(self, group: Group) -> None:
        drawn = [draw.trajectory_id for draw in group.draws]
        if self.groups.setdefault((group.batch_id, group.index), drawn) != drawn:
            self.changed.append((group.batch_id, group.index))

    def _train(self) -> None:
        while (self.trained + 1, 0) in self.groups and (self.trained + 1, 1) in self.groups:
            self.trained += 1
            self._say(topics.STEPS, step(self.trained, policy_version=self.trained // 2, checkpoint=self.trained))
            self._publish()

    def _publish(self) -> None:
        version = self.trained // 2
        self._say(
            topics.WEIGHTS,
            Weights(run_id=self._run_id, version=version, step=self.trained, uri="v", digest="d", steps_per_version=2),
        )

    def _say(self, topic: topics.Topic, message: Message) -> None:
        self._producer.send(topic.name, message.model_copy(update={"run_id": self._run_id}), key=self._run_id)


def until(others: Others, reached: Callable[[], bool]) -> None:
    """Let the others work until something is reached."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        assert time.monotonic() < deadline, f"{others.answered} orders answered, {others.trained} batches trained"
        others.turn()
