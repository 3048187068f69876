"""The feed: decides which prompts go to the generators, and when. A task is a row, an order is a row, then a message.

Training prompts go round robin over the active tasks, the least ordered first, never the same one twice in flight,
and never more than the learner can take in before they are too old. Evaluations go first, a bounded number at once.
A prompt that nobody can serve rests before it is tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from sqlalchemy import Connection

from services.buffer import orders, seeds
from services.buffer.in_flight import InFlight, Waiting
from services.buffer.lease import Lease
from services.buffer.orders import EvaluationRequest, Issue, KnownTask, PromptText
from services.buffer.pacing import Resting, Turnaround
from tba_common import topics
from tba_common.messages import Prompt, Purpose

MAX_ATTEMPTS: Final = 5
MAX_EVALUATIONS_IN_FLIGHT: Final = 256
PURPOSES: Final[tuple[Purpose, ...]] = ("train", "eval")
_REFRESH_SECONDS: Final = 1.0
_LEAST_BATCHES: Final = 4  # of prompts that may be in flight before any answer has been seen

#: Sends a message to a partition of `tba.prompts`.
Send = Callable[[Prompt, int], None]

log = logging.getLogger(__name__)


class Feed:
    """Single-threaded. `now` is everywhere the same monotonic clock, in seconds."""

    def __init__(self, lease: Lease, run_id: str, send: Send, *, reissue_seconds: float, groups: int) -> None:
        self._lease, self._run_id, self._send = lease, run_id, send
        self._groups = groups
        self._turnaround: dict[Purpose, Turnaround] = {p: Turnaround(reissue_seconds) for p in PURPOSES}
        self._refreshed_at = float("-inf")
        self._requests: list[EvaluationRequest] = []
        self._seeded: list[int] = []  # tasks with answers that wait for their order
        self._first_task = 0
        self._resting = Resting()
        self.in_flight = InFlight(topics.PROMPTS.partitions)
        self.tasks: dict[int, KnownTask] = {}
        self.trainable = 0  # prompts of active tasks, counted up to G

    @property
    def active(self) -> frozenset[int]:
        """The tasks that are trained on now."""
        return frozenset(task_id for task_id, task in self.tasks.items() if task.state == "active")

    def load(self, now: float) -> None:
        """Take over what is in flight, with a full deadline from now: nobody has listened until now."""
        with self._lease.transaction() as connection:
            for issue in orders.load_in_flight(connection, self._run_id, PURPOSES):
                self.in_flight.restore(issue, now)
        self._refresh(now)

    def settled(self, worked: Mapping[int, float | None], now: float, *, refused: Collection[int] = ()) -> None:
        """Take note of orders that were settled, by an answer or, the `refused` ones, by a dead letter.

        `worked` has the seconds of sampling and scoring of each, None where they are unknown.
        """
        for issue_id, work_seconds in worked.items():
            if (waiting := self.in_flight.remove(issue_id)) is None:
                continue
            self._turnaround[waiting.issue.purpose].answered(now, now - waiting.sent_at, work_seconds)
            if issue_id in refused:
                self._resting.refused(waiting.issue.prompt_id, now)
            else:
                self._resting.served(waiting.issue.prompt_id)

    def reopened(self, issue: Issue, now: float) -> None:
        """Wait again for an order that was dead-lettered: what it failed with was sent again."""
        self.in_flight.remove(issue.issue_id)
        self.in_flight.restore(issue, now)

    def lost(self) -> None:
        """Count everything in flight as lost, because the broker lost its logs: the next turn sends it again."""
        self.in_flight.forget_when_sent()

    def turn(self, now: float, limit: int) -> int:
        """Send what is due: lost orders again, evaluations, and up to `limit` training prompts.

        Returns the completions that were given up, for nobody answered.
        """
        if now - self._refreshed_at >= _REFRESH_SECONDS:
            self._refresh(now)
        given_up = sum(self._send_lost(purpose, now) for purpose in self._turnaround)
        self._evaluate(now)
        self._sow(now)
        window = self._turnaround["train"].window(now, _LEAST_BATCHES * self._groups)
        self._train(now, min(limit, window - self.in_flight.by_task("train").total()))
        return given_up

    def _refresh(self, now: float) -> None:
        """Look for tasks that were posted, paused or deleted, and for evaluations that were asked for."""
        self._refreshed_at = now
        with self._lease.transaction() as connection:
            self._requests = orders.open_evaluations(connection, self._run_id)
            self._seeded = seeds.tasks_with_seeds(connection, self.active)
            known, self.tasks = self.tasks, orders.load_tasks(connection, self._run_id)
            self.trainable = orders.count_trainable(connection, self.active, self._groups)
        for task_id in self.tasks.keys() - known.keys():
            if self.tasks[task_id].is_newer:
                log.warning("task waits for the newer program that stored it", extra={"task_id": task_id})

    def _send_lost(self, purpose: Purpose, now: float) -> int:
        """Send overdue orders again; give up on those that failed too often or whose task does not want them.

        What such an order was made for is open again: the prompt, the evaluation, or the seeds get a new one.
        """
        deadline = self._turnaround[purpose].deadline_seconds()
        overdue = self.in_flight.overdue(purpose, now - deadline)
        if not overdue:
            return 0
        for waiting in overdue:
            self.in_flight.remove(waiting.issue.issue_id)
        given_up = [waiting.issue for waiting in overdue if not self._is_wanted(waiting)]
        again = [self._again(waiting) for waiting in overdue if self._is_wanted(waiting)]
        with self._lease.transaction() as connection:
            orders.expire(connection, [issue.issue_id for issue in given_up])
            orders.reopen_evaluations(connection, given_up)
            seeds.reopen(connection, [issue.issue_id for issue in given_up])
            orders.update_attempts(connection, again)
            texts = orders.find_texts(connection, [issue.prompt_id for issue in again])
            given = seeds.given(connection, [issue.issue_id for issue in again])
        fields = {"purpose": purpose, "again": len(again), "given_up": len(given_up), "deadline_seconds": deadline}
        log.warning("orders overdue", extra=fields)
        late = [waiting.issue for waiting in overdue if not waiting.is_lost]
        if any(self._is_open(issue) for issue in late):  # what nobody wants says nothing about who is there
            self._turnaround[purpose].lapsed()
        self._send_all([(issue, texts[issue.prompt_id]) for issue in again], now, given)
        return sum(issue.completions for issue in given_up)

    def _again(self, waiting: Waiting) -> Issue:
        issue, partition = waiting.issue, self.in_flight.reserve(waiting.issue.completions)
        return replace(issue, attempt=issue.attempt + (not waiting.is_lost), partition=partition)

    def _is_wanted(self, waiting: Waiting) -> bool:
        return self._is_open(waiting.issue) and (waiting.is_lost or waiting.issue.attempt < MAX_ATTEMPTS)

    def _is_open(self, issue: Issue) -> bool:
        state = self.tasks[issue.task_id].state
        return state == "active" or (state == "paused" and issue.purpose == "eval")

    def _evaluate(self, now: float) -> None:
        room = MAX_EVALUATIONS_IN_FLIGHT - self.in_flight.by_task("eval").total()
        if not self._requests or room <= 0:
            return
        made: list[tuple[Issue, PromptText]] = []
        open_requests = []
        with self._lease.transaction() as connection:
            for request in self._requests:
                made += self._order_evaluation(connection, request, room - len(made))
                if len(made) >= room:
                    open_requests.append(request)
                else:
                    orders.close_evaluation(connection, request)
        self._requests = open_requests
        self._send_all(made, now)

    def _order_evaluation(
        self, connection: Connection, request: EvaluationRequest, room: int
    ) -> list[tuple[Issue, PromptText]]:
        if room <= 0 or self.tasks[request.task_id].state == "deleted":
            return []
        prompts = orders.unevaluated_prompts(connection, request, room)
        return self._order(connection, request.task_id, prompts, version=request.policy_version)

    def _sow(self, now: float) -> None:
        """Order the answers that people gave, of prompts that nothing else is in flight for."""
        made: list[tuple[Issue, PromptText]] = []
        given: dict[int, list[str]] = {}
        tasks, self._seeded = self._seeded, []
        for task_id in tasks:
            with self._lease.transaction() as connection:
                found = seeds.next_seeds(connection, task_id, self.in_flight.prompts("train"))
                texts = orders.find_texts(connection, list(found))
                ordered = [self._issue(task_id, x, "train", len(answers)) for x, answers in found.items()]
                for issue in orders.add_issues(connection, self._run_id, ordered) if ordered else []:
                    seeds.mark(connection, issue.issue_id, [seed_id for seed_id, _ in found[issue.prompt_id]])
                    given[issue.issue_id] = [answer for _, answer in found[issue.prompt_id]]
                    made.append((issue, texts[issue.prompt_id]))
        self._send_all(made, now, given)

    def _train(self, now: float, count: int) -> None:
        active = sorted(self.active)
        if count <= 0 or not active:
            return
        start = self._first_task % len(active)
        busy = self.in_flight.prompts("train") | self._resting.prompts(now)
        made: list[tuple[Issue, PromptText]] = []
        with self._lease.transaction() as connection:
            for position, task_id in enumerate(active[start:] + active[:start]):
                share = -(-(count - len(made)) // (len(active) - position))
                if share > 0:
                    made += self._order(connection, task_id, orders.next_prompts(connection, task_id, busy, share))
        self._first_task = start + len(made)
        self._send_all(made, now)

    def _order(
        self, connection: Connection, task_id: int, prompts: Sequence[PromptText], version: int | None = None
    ) -> list[tuple[Issue, PromptText]]:
        if not prompts:
            return []
        purpose: Purpose = "train" if version is None else "eval"
        task = self.tasks[task_id].spec
        completions = (task.sampling if purpose == "train" else task.evaluation).completions
        made = [self._issue(task_id, p.prompt_id, purpose, completions, version) for p in prompts]
        return list(zip(orders.add_issues(connection, self._run_id, made), prompts, strict=True))

    def _issue(
        self, task_id: int, prompt_id: int, purpose: Purpose, completions: int, version: int | None = None
    ) -> Issue:
        partition = self.in_flight.reserve(completions)
        return Issue(0, task_id, prompt_id, purpose, version, completions, attempt=1, partition=partition)

    def _send_all(
        self, made: Sequence[tuple[Issue, PromptText]], now: float, given: Mapping[int, Sequence[str]] | None = None
    ) -> None:
        """Send orders whose rows are committed: a crash in between is an order that is sent again."""
        for issue, prompt in made:
            self.in_flight.add(issue, now)
            task = self.tasks[issue.task_id].spec
            answers = (given or {}).get(issue.issue_id, ())
            self._send(orders.message_of(self._run_id, issue, prompt, task, answers), issue.partition)
