"""prompt -> rollout: takes prompts, samples their completions, sends them to the first scorer.

A prompt is done when its rollout is delivered, never before: a process that dies loses time, not prompts.
An evaluation is sampled with exactly the version it names.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from services.generator.engine import Engine, Finished, Request, UnusablePrompt
from services.generator.exploration import explore
from services.generator.weight_sync import WeightsRefused, WeightSync, next_version
from tba_common import metrics
from tba_common.codec import BadMessage
from tba_common.delivery import DeadLetters
from tba_common.kafka import Consumer, Producer, Record
from tba_common.messages import Message, Prompt, Rollout
from tba_common.topics import rollouts

HAND_BACK_SECONDS: Final = 10.0  # of its grace, a process needs this to commit and leave, even without a broker
_IDLE_SECONDS: Final = 0.25
_FILL_SECONDS: Final = 0.03  # a batch waits this long for more prompts, no longer
_COLLECT_SECONDS: Final = 0.25
_DELIVERY_SECONDS: Final = 90.0  # a broker may be away for a while, but liveness gives up after 120 s

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A prompt in hand."""

    record: Record
    prompt: Prompt

    @property
    def pinned(self) -> int | None:
        """The version an evaluation asks for."""
        return self.prompt.policy_version if self.prompt.purpose == "eval" else None


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A prompt in the engine, and how it is sampled."""

    waiting: _Waiting
    request: Request
    began_at: float


class Worker:
    """The loop of `tba-generator`, one `step` at a time.

    `max_completions` bounds what the engine holds at once, save for one group that is larger by itself.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        weights: WeightSync,
        consumer: Consumer,
        producer: Producer,
        dead_letters: DeadLetters,
        run_id: str,
        name: str,
        max_completions: int,
        rng: np.random.Generator,
    ) -> None:
        self._engine = engine
        self._weights = weights
        self._consumer = consumer
        self._producer = producer
        self._dead_letters = dead_letters
        self._run_id = run_id
        self._name = name
        self._max_completions = max_completions
        self._rng = rng
        self._request_ids = itertools.count()
        self._waiting: list[_Waiting] = []
        self._in_flight: dict[int, _InFlight] = {}
        self._sent: list[Record] = []  # answered, not known to be delivered

    @property
    def trouble(self) -> str:
        """Why this process should not count as ready; empty if it should."""
        return self._weights.trouble

    def step(self) -> None:
        """One turn: follow the weights, take and submit prompts, send what has finished."""
        self._weights.poll(_IDLE_SECONDS if self._weights.serving is None else 0.0)
        if self._weights.serving is not None:
            self._take()
        self._follow_weights()
        self._submit()
        metrics.GENERATOR_RUNNING.set(self._completions_in_flight())
        metrics.GENERATOR_WAITING.set(len(self._waiting))
        self._collect()
        self._settle()

    def drain(self, seconds_left: Callable[[], float] = lambda: math.inf) -> None:
        """Finish what is in flight while there is time; the rest stays uncommitted and is another's to take."""
        self._consumer.stop_taking()
        self._waiting.clear()
        while self._in_flight and seconds_left() > HAND_BACK_SECONDS:
            self._collect()
            self._settle()
        metrics.GENERATOR_HANDED_BACK.inc(len(self._in_flight))
        log.info("drained", extra={"handed_back": len(self._in_flight)})

    def _take(self) -> None:
        """Take what fills the engine. Prompts that cannot start yet do not count: behind them may be some that can."""
        ready = sum(w.prompt.sampling.completions for w in self._waiting if self._can_start(w))
        room = self._max_completions - self._completions_in_flight() - ready
        idle = room == self._max_completions
        for patience_seconds in (_IDLE_SECONDS if idle else 0.0, _FILL_SECONDS):
            wait_seconds = patience_seconds
            while room > 0 and (records := self._consumer.take(1, wait_seconds)):
                taken = self._receive(records[0])
                room -= taken.prompt.sampling.completions if taken and self._can_start(taken) else 0
                wait_seconds = 0.0

    def _completions_in_flight(self) -> int:
        return sum(flight.request.completions for flight in self._in_flight.values())

    def _receive(self, record: Record) -> _Waiting | None:
        try:
            prompt = _usable(record.message())
        except BadMessage as error:
            self._reject(record, str(error))
            return None
        waiting = _Waiting(record, prompt)
        self._waiting.append(waiting)
        return waiting

    def _follow_weights(self) -> None:
        wanted = next_version(
            serving=self._weights.serving,
            newest=self._weights.newest,
            waiting={w.pinned for w in self._waiting if w.pinned is not None},
            evaluating=any(flight.waiting.pinned is not None for flight in self._in_flight.values()),
        )
        if wanted is None or wanted == self._weights.serving:
            return
        try:
            self._weights.load(wanted)
        except WeightsRefused as refusal:
            if wanted == self._weights.newest:
                raise
            self._give_up_evaluations(wanted, str(refusal))

    def _give_up_evaluations(self, version: int, reason: str) -> None:
        for waiting in [w for w in self._waiting if w.pinned == version]:
            self._waiting.remove(waiting)
            self._reject(waiting.record, reason)
            self._dead_letters.handled()  # many prompts, one cause: no sign that every message is bad

    def _submit(self) -> None:
        ready = [waiting for waiting in self._waiting if self._can_start(waiting)]
        for waiting in sorted(ready, key=lambda w: w.pinned is None):  # evaluations first
            room = self._max_completions - self._completions_in_flight()
            # A group larger than the whole batch goes alone.
            if self._in_flight and waiting.prompt.sampling.completions > room:
                return
            self._waiting.remove(waiting)
            self._start(waiting)

    def _can_start(self, waiting: _Waiting) -> bool:
        if waiting.pinned is not None:
            return waiting.pinned == self._weights.serving
        return self._weights.serving is not None and not self._weights.turned_back

    def _start(self, waiting: _Waiting) -> None:
        prompt = waiting.prompt
        temperature, top_p = explore(prompt.sampling, self._rng)
        request = Request(
            request_id=next(self._request_ids),
            text=prompt.text,
            prompt_format=prompt.prompt_format,
            completions=prompt.sampling.completions,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=prompt.sampling.max_new_tokens,
            system=prompt.system,
        )
        flight = _InFlight(waiting, request, time.monotonic())
        try:
            if prompt.given:
                self._send(flight, self._engine.read(request, prompt.given))
                return
            self._engine.submit(request)
        except UnusablePrompt as reason:
            self._reject(waiting.record, str(reason))
            self._dead_letters.handled()  # the prompt's own fault: a task full of them must not stop the others
        else:
            self._in_flight[request.request_id] = flight

    def _collect(self) -> None:
        if not self._in_flight:
            return
        for finished in self._engine.collect(_COLLECT_SECONDS):
            self._send(self._in_flight.pop(finished.request_id), finished)
            metrics.GENERATOR_COMPLETIONS.inc(len(finished.completions))
            metrics.GENERATOR_TOKENS.inc(sum(len(c.token_ids) for c in finished.completions))

    def _send(self, flight: _InFlight, finished: Finished) -> None:
        rollout = self._rollout(flight, finished)
        try:
            self._producer.send(rollouts(rollout.remaining[0]), rollout, key=str(rollout.prompt.prompt_id))
        except BadMessage as error:  # more completions than a record can hold
            self._reject(flight.waiting.record, str(error))
        else:
            self._sent.append(flight.waiting.record)
            self._dead_letters.handled(rollout.prompt.task_id)

    def _rollout(self, flight: _InFlight, finished: Finished) -> Rollout:
        prompt = flight.waiting.prompt
        return Rollout(
            run_id=self._run_id,
            prompt=prompt,
            prompt_token_ids=finished.prompt_token_ids,
            completions=finished.completions,
            temperature=flight.request.temperature,
            top_p=flight.request.top_p,
            generator=self._name,
            remaining=tuple(term.scorer for term in prompt.reward),
            seconds=time.monotonic() - flight.began_at,
        )

    def _reject(self, record: Record, reason: str) -> None:
        self._dead_letters.reject(record, reason)
        self._consumer.done(record)

    def _settle(self) -> None:
        """Commit what was answered once all of it is delivered; otherwise this raises and nothing is."""
        if self._sent:
            self._producer.flush(_DELIVERY_SECONDS)
            for record in self._sent:
                self._consumer.done(record)
            self._sent.clear()


def _usable(message: Message) -> Prompt:
    """The message as a prompt that can be answered.

    Raises:
        BadMessage: it is none, or nobody could use the answer.
    """
    if not isinstance(message, Prompt):
        raise BadMessage(f"expected a prompt, got a {type(message).__name__.lower()}")
    if not message.reward:
        raise BadMessage("expected at least one scorer in reward, got none")
    if message.purpose == "eval" and message.policy_version is None:
        raise BadMessage("expected policy_version in an evaluation, got none")
    return message
