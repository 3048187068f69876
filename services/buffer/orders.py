"""Orders to the generators as rows of `issues`: made before they are sent, so that no crash can lose one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import ValidationError
from sqlalchemy import BigInteger, Connection, Integer, Row, SmallInteger, Text, Update, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert

from services.buffer.arrays import any_of, table_of
from services.buffer.request_tables import evaluation_requests
from services.buffer.tables import issues, prompts, tasks
from tba_common.messages import Prompt, Purpose
from tba_common.tasks import TEXT, Combination, Task, stored_task

TaskState = Literal["active", "paused", "deleted"]


@dataclass(frozen=True, slots=True)
class Issue:
    """An order in flight. A grading has prompt 0, and task 0 where it names none."""

    issue_id: int
    task_id: int
    prompt_id: int
    purpose: Purpose
    policy_version: int | None  # of an evaluation
    completions: int
    attempt: int
    partition: int
    request_id: int | None = None  # of a grading or a re-scoring


@dataclass(frozen=True, slots=True)
class KnownTask:
    """A task of the run, deleted ones included: what is in flight for them must still be understood.

    One `is_newer` when a newer program stored it with fields that this one does not know. They may change what is
    trained, so it is paused here, whatever its row says, until that program is back.
    """

    task_id: int
    state: TaskState
    spec: Task
    is_newer: bool = False


@dataclass(frozen=True, slots=True)
class PromptText:
    """A prompt as the generators and scorers need it."""

    prompt_id: int
    text: str
    reference: str | None
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """A task's held-out prompts are to be answered by one policy version."""

    task_id: int
    policy_version: int


def load_tasks(connection: Connection, run_id: str) -> dict[int, KnownTask]:
    """Return every task of the run by id."""
    query = select(tasks.c.task_id, tasks.c.state, tasks.c.spec).where(tasks.c.run_id == run_id)
    return {row.task_id: _known(row.task_id, row.state, row.spec) for row in connection.execute(query)}


def _known(task_id: int, state: TaskState, spec: object) -> KnownTask:
    try:
        return KnownTask(task_id, state, Task.model_validate(spec))
    except ValidationError:
        return KnownTask(task_id, "paused" if state == "active" else state, stored_task(spec), is_newer=True)


def count_trainable(connection: Connection, task_ids: Collection[int], limit: int) -> int:
    """Count the training prompts of these tasks, up to `limit`."""
    found = select(prompts.c.prompt_id).where(prompts.c.task_id == any_of(task_ids), prompts.c.split == "train")
    return int(connection.execute(select(func.count()).select_from(found.limit(limit).subquery())).scalar_one())


def load_in_flight(connection: Connection, run_id: str, purposes: Collection[Purpose]) -> list[Issue]:
    """Return the orders that are not settled, oldest first."""
    query = select(issues).where(
        issues.c.run_id == run_id, issues.c.state == "in_flight", issues.c.purpose.in_(purposes)
    )
    return [_issue(row) for row in connection.execute(query.order_by(issues.c.issue_id))]


def find_issues(connection: Connection, issue_ids: Collection[int]) -> list[Issue]:
    """Return orders by id."""
    query = select(issues).where(issues.c.issue_id == any_of(issue_ids))
    return [_issue(row) for row in connection.execute(query.order_by(issues.c.issue_id))]


def next_prompts(connection: Connection, task_id: int, busy: Collection[int], limit: int) -> list[PromptText]:
    """Return the training prompts that were ordered least often and are not in flight."""
    query = select(prompts).where(
        prompts.c.task_id == task_id, prompts.c.split == "train", ~(prompts.c.prompt_id == any_of(busy))
    )
    return _texts(connection.execute(query.order_by(prompts.c.issues, prompts.c.prompt_id).limit(limit)))


def open_evaluations(connection: Connection, run_id: str) -> list[EvaluationRequest]:
    """Return the evaluations that were asked for and not yet ordered in full, oldest first."""
    request = evaluation_requests.c
    query = select(request.task_id, request.policy_version).where(request.run_id == run_id, request.issued_at.is_(None))
    rows = connection.execute(query.order_by(request.created_at, request.task_id, request.policy_version))
    return [EvaluationRequest(row.task_id, row.policy_version) for row in rows]


def unevaluated_prompts(connection: Connection, request: EvaluationRequest, limit: int) -> list[PromptText]:
    """Return held-out prompts that have no order at this version yet, or one that was given up."""
    ordered = select(issues.c.prompt_id).where(
        issues.c.task_id == request.task_id,
        issues.c.purpose == "eval",
        issues.c.policy_version == request.policy_version,
        issues.c.expired < issues.c.completions,
    )
    query = select(prompts).where(
        prompts.c.task_id == request.task_id, prompts.c.split == "eval", prompts.c.prompt_id.not_in(ordered)
    )
    return _texts(connection.execute(query.order_by(prompts.c.prompt_id).limit(limit)))


def close_evaluation(connection: Connection, request: EvaluationRequest) -> None:
    """Take note that every held-out prompt has its order."""
    connection.execute(_update_of(request).values(issued_at=func.now()))


def reopen_evaluations(connection: Connection, expired: Iterable[Issue]) -> None:
    """Let the held-out prompts of these orders be ordered anew."""
    for task_id, version in sorted({(o.task_id, o.policy_version) for o in expired if o.policy_version is not None}):
        connection.execute(_update_of(EvaluationRequest(task_id, version)).values(issued_at=None))


def _update_of(request: EvaluationRequest) -> Update:
    asked = evaluation_requests.c
    same = (asked.task_id == request.task_id) & (asked.policy_version == request.policy_version)
    return update(evaluation_requests).where(same)


def add_issues(connection: Connection, run_id: str, orders: Sequence[Issue]) -> list[Issue]:
    """Insert orders of different prompts, whose issue_id is still 0; return them with their ids.

    A training prompt counts its orders, so that the least ordered comes next.
    """
    given = table_of(
        prompt_id=(BigInteger(), [order.prompt_id for order in orders]),
        task_id=(BigInteger(), [order.task_id for order in orders]),
        purpose=(Text(), [order.purpose for order in orders]),
        policy_version=(Integer(), [order.policy_version for order in orders]),
        completions=(Integer(), [order.completions for order in orders]),
        partition=(SmallInteger(), [order.partition for order in orders]),
    )
    names = ["run_id", *(c.name for c in given.c)]
    statement = insert(issues).from_select(names, select(literal(run_id), *given.c))
    rows = connection.execute(statement.returning(issues.c.issue_id, issues.c.prompt_id))
    ids = {row.prompt_id: row.issue_id for row in rows}
    trained = [order.prompt_id for order in orders if order.purpose == "train"]
    count = update(prompts).where(prompts.c.prompt_id == any_of(trained)).values(issues=prompts.c.issues + 1)
    connection.execute(count)
    return [replace(order, issue_id=ids[order.prompt_id]) for order in orders]


def update_attempts(connection: Connection, orders: Sequence[Issue]) -> None:
    """Record that orders are sent once more, perhaps to another partition."""
    given = table_of(
        issue_id=(BigInteger(), [order.issue_id for order in orders]),
        attempt=(SmallInteger(), [order.attempt for order in orders]),
        partition=(SmallInteger(), [order.partition for order in orders]),
    )
    again = {"attempt": given.c.attempt, "partition": given.c.partition, "issued_at": func.now()}
    connection.execute(update(issues).where(issues.c.issue_id == given.c.issue_id).values(**again))


def expire(connection: Connection, issue_ids: Collection[int]) -> None:
    """Settle orders that nobody answered, or whose task is gone."""
    lost = update(issues).where(issues.c.issue_id == any_of(issue_ids), issues.c.state == "in_flight")
    connection.execute(lost.values(state="settled", settled_at=func.now(), expired=issues.c.completions))


def find_texts(connection: Connection, prompt_ids: Collection[int]) -> dict[int, PromptText]:
    """Return prompts by id."""
    query = select(prompts).where(prompts.c.prompt_id == any_of(prompt_ids))
    return {prompt.prompt_id: prompt for prompt in _texts(connection.execute(query))}


def message_of(run_id: str, issue: Issue, prompt: PromptText, task: Task, given: Sequence[str] = ()) -> Prompt:
    """Return the message that orders `issue`, with the answers where they are `given`.

    Evaluation is sampled as its task says, without exploration; it is judged by its own terms, summed, if it has any.
    """
    sampling, reward, combination = task.sampling, task.reward, task.combination
    if issue.purpose == "eval":
        how = task.evaluation
        asked = {"completions": how.completions, "temperature": how.temperature, "top_p": 1.0, "exploration": None}
        sampling = sampling.model_copy(update=asked)
        if how.reward is not None:
            reward, combination = how.reward, Combination()
    return Prompt(
        run_id=run_id,
        issue_id=issue.issue_id,
        attempt=issue.attempt,
        task_id=issue.task_id,
        prompt_id=issue.prompt_id,
        purpose=issue.purpose,
        policy_version=issue.policy_version,
        text=task.template.replace(TEXT, prompt.text),
        system=task.system,
        reference=prompt.reference,
        metadata=prompt.metadata,
        prompt_format=task.prompt_format,
        sampling=sampling,
        reward=reward,
        combination=combination,
        given=tuple(given),
    )


def _texts(rows: Iterable[Row[Any]]) -> list[PromptText]:
    return [PromptText(row.prompt_id, row.text, row.reference, row.metadata) for row in rows]


def _issue(row: Row[Any]) -> Issue:
    return Issue(
        row.issue_id,
        row.task_id or 0,
        row.prompt_id or 0,
        row.purpose,
        row.policy_version,
        row.completions,
        row.attempt,
        row.partition,
        row.request_id,
    )
