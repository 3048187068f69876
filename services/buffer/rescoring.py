"""Re-scoring as rows: a task's stored trajectories visit its scorers again, in groups of one prompt.

It begins when everything that was ordered before it has come back: what is in flight carries the old reward, and would
overwrite the new one. An audit row is written for each trajectory before it is sent, with what it was worth until then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import numpy as np
from sqlalchemy import (
    Connection,
    Row,
    Select,
    Text,
    Uuid,
    and_,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB, REAL, insert

from services.buffer.arrays import any_of, table_of
from services.buffer.arrivals import fingerprint, scores_of
from services.buffer.orders import Issue, KnownTask, find_texts, message_of
from services.buffer.request_tables import rescored, rescores
from services.buffer.tables import issues, payloads, prompts, trajectories
from tba_common.messages import Completion, Rollout, Trajectories
from tba_common.tasks import Combination, Frozen, ScorerTerm

_GROUP: Final = 64  # trajectories in an order
_GROUP_TOKENS: Final = 150_000  # about 2 MB of message
_ORDERS_AT_ONCE: Final = 16

#: (version, trajectory id, reward) of trajectories whose reward has changed, by (prompt id, task id).
Changed = dict[tuple[int, int], list[tuple[int, int, float]]]


class Chosen(Frozen):
    """Which of a task's trajectories are scored again; without any limit, all of them."""

    min_version: int | None = None
    max_version: int | None = None
    min_reward: float | None = None
    max_reward: float | None = None
    limit: int | None = None


def order(connection: Connection, run_id: str, tasks: Mapping[int, KnownTask], room: int) -> list[int]:
    """Begin, go on with and close the re-scorings of a run; return the ids of up to `room` new orders."""
    made: list[int] = []
    is_open = select(rescores).where(rescores.c.run_id == run_id, rescores.c.closed_at.is_(None))
    for row in connection.execute(is_open.order_by(rescores.c.rescore_id)).all():
        task = tasks.get(row.task_id)
        if task is None:
            continue
        if task.state == "deleted":
            _update(connection, row.rescore_id, closed_at=func.now())
        elif row.through_issue_id is None:
            _begin(connection, row, task)
        elif not _is_awaited(connection, row):
            made += _send(connection, row, min(room - len(made), _ORDERS_AT_ONCE))
    return made


def rollout_of(connection: Connection, run_id: str, issue: Issue, task: KnownTask) -> Rollout | None:
    """Return the message that orders a re-scoring; None if one of its trajectories has left the buffer since."""
    asked = connection.execute(select(rescores).where(rescores.c.rescore_id == issue.request_id)).one()
    same = and_(trajectories.c.run_id == payloads.c.run_id, trajectories.c.trajectory_id == payloads.c.trajectory_id)
    query = (
        select(trajectories, payloads.c.token_ids, payloads.c.logprobs, payloads.c.text, prompts.c.token_ids.label("x"))
        .join(payloads, same)
        .join(prompts, prompts.c.prompt_id == trajectories.c.prompt_id)
        .join(rescored, rescored.c.trajectory_id == trajectories.c.trajectory_id)
        .where(trajectories.c.run_id == run_id, rescored.c.issue_id == issue.issue_id)
    )
    rows = connection.execute(query.order_by(trajectories.c.trajectory_id)).all()
    if len(rows) != issue.completions:
        return None
    reward = tuple(map(ScorerTerm.model_validate, asked.reward))
    spec = task.spec.model_copy(update={"reward": reward, "combination": Combination.model_validate(asked.combination)})
    text = find_texts(connection, [issue.prompt_id])[issue.prompt_id]
    return Rollout(
        run_id=run_id,
        prompt=message_of(run_id, issue, text, spec),
        prompt_token_ids=np.frombuffer(rows[0].x, "<i4"),
        completions=tuple(map(_completion, rows)),
        temperature=spec.sampling.temperature,
        top_p=spec.sampling.top_p,
        generator="tba-buffer",
        remaining=tuple(term.scorer for term in reward),
    )


def store(connection: Connection, run_id: str, issue: Issue, message: Trajectories) -> Changed:
    """Write the new rewards over the old ones, and into the audit; return what changed."""
    rollout = message.rollout
    given = table_of(
        fingerprint=(Uuid(), [fingerprint(completion.token_ids) for completion in rollout.completions]),
        reward=(REAL(), [float(reward) for reward in message.rewards]),
        scores=(Text(), scores_of(rollout)),
    )
    mine = and_(
        trajectories.c.run_id == run_id,
        trajectories.c.prompt_id == issue.prompt_id,
        trajectories.c.fingerprint == given.c.fingerprint,
    )
    fresh = {"reward": given.c.reward, "scores": sql_cast(given.c.scores, JSONB)}
    columns = (trajectories.c.policy_version, trajectories.c.trajectory_id, trajectories.c.reward)
    rows = connection.execute(update(trajectories).where(mine).values(fresh).returning(*columns)).all()
    _audit(connection, issue, run_id, [row.trajectory_id for row in rows])
    fail(connection, issue.issue_id, "it has left the buffer")
    return {(issue.prompt_id, issue.task_id): [(v, i, r) for v, i, r in rows]}


def fail(connection: Connection, issue_id: int, reason: str) -> None:
    """Write why trajectories of an order keep their old reward."""
    lost = update(rescored).where(rescored.c.issue_id == issue_id, rescored.c.settled_at.is_(None))
    connection.execute(lost.values(fault=reason.replace("\x00", ""), settled_at=func.now()))


def reopen(connection: Connection, issue_id: int) -> None:
    """Forget why these keep their old reward: they are on their way again."""
    failed = update(rescored).where(rescored.c.issue_id == issue_id, rescored.c.new_reward.is_(None))
    connection.execute(failed.values(fault=None, settled_at=None))


def _begin(connection: Connection, row: Row[Any], task: KnownTask) -> None:
    """From the moment on that orders carry the reward asked for, draw the line: what was ordered before is chosen."""
    asked = tuple(map(ScorerTerm.model_validate, row.reward))
    if (asked, Combination.model_validate(row.combination)) == (task.spec.reward, task.spec.combination):
        newest = select(func.coalesce(func.max(issues.c.issue_id), 0)).where(issues.c.run_id == row.run_id)
        _update(connection, row.rescore_id, through_issue_id=newest.scalar_subquery())


def _is_awaited(connection: Connection, row: Row[Any]) -> bool:
    """Is anything that was ordered before still on its way?"""
    before = select(issues.c.issue_id).where(
        issues.c.run_id == row.run_id,
        issues.c.task_id == row.task_id,
        issues.c.purpose == "train",
        issues.c.state == "in_flight",
        issues.c.issue_id <= row.through_issue_id,
    )
    return connection.execute(before.limit(1)).first() is not None


def _send(connection: Connection, row: Row[Any], room: int) -> list[int]:
    chosen = Chosen.model_validate(row.chosen)
    total = row.total
    if total is None:
        total = connection.execute(select(func.count()).select_from(_of(row, chosen).subquery())).scalar_one()
        total = total if chosen.limit is None else min(total, chosen.limit)
        _update(connection, row.rescore_id, total=total)
    if row.sent >= total:
        _close_if_settled(connection, row.rescore_id)
        return []
    after = tuple_(trajectories.c.prompt_id, trajectories.c.trajectory_id) > (
        row.after_prompt_id,
        row.after_trajectory_id,
    )
    some = _of(row, chosen).where(after).order_by(trajectories.c.prompt_id, trajectories.c.trajectory_id)
    rows = connection.execute(some.limit(min(total - row.sent, _GROUP * _ORDERS_AT_ONCE))).all()
    if not rows:  # some have left the buffer since they were counted
        _update(connection, row.rescore_id, total=row.sent)
        return []
    made = []
    for _, group in zip(range(room), _groups(rows), strict=False):
        made.append(_order_group(connection, row, group))
    return made


def _of(row: Row[Any], chosen: Chosen) -> Select[Any]:
    columns = ("trajectory_id", "prompt_id", "tokens", "reward", "scores")
    query = select(*(trajectories.c[name] for name in columns)).where(
        trajectories.c.run_id == row.run_id,
        trajectories.c.task_id == row.task_id,
        trajectories.c.issue_id <= row.through_issue_id,
    )
    for column, least, most in (
        (trajectories.c.policy_version, chosen.min_version, chosen.max_version),
        (trajectories.c.reward, chosen.min_reward, chosen.max_reward),
    ):
        query = query if least is None else query.where(column >= least)
        query = query if most is None else query.where(column <= most)
    return query


def _groups(rows: Sequence[Row[Any]]) -> Iterator[list[Row[Any]]]:
    """Cut rows into orders: of one prompt, not too many, not too long."""
    for _, of_prompt in groupby(rows, key=lambda row: row.prompt_id):
        group: list[Row[Any]] = []
        for row in of_prompt:
            if group and (len(group) == _GROUP or sum(r.tokens for r in group) + row.tokens > _GROUP_TOKENS):
                yield group
                group = []
            group.append(row)
        yield group


def _order_group(connection: Connection, row: Row[Any], group: Sequence[Row[Any]]) -> int:
    values = {"run_id": row.run_id, "task_id": row.task_id, "prompt_id": group[0].prompt_id, "purpose": "rescore"}
    issue = insert(issues).values(**values, request_id=row.rescore_id, completions=len(group), partition=0)
    issue_id = int(connection.execute(issue.returning(issues.c.issue_id)).scalar_one())
    audit = [
        {
            "rescore_id": row.rescore_id,
            "issue_id": issue_id,
            "trajectory_id": one.trajectory_id,
            "old_reward": one.reward,
            "old_scores": one.scores,
        }
        for one in group
    ]
    connection.execute(insert(rescored), audit)
    last = {"after_prompt_id": group[-1].prompt_id, "after_trajectory_id": group[-1].trajectory_id}
    _update(connection, row.rescore_id, sent=rescores.c.sent + len(group), **last)
    return issue_id


def _close_if_settled(connection: Connection, rescore_id: int) -> None:
    waiting = select(rescored.c.trajectory_id).where(
        rescored.c.rescore_id == rescore_id, rescored.c.settled_at.is_(None)
    )
    if connection.execute(waiting.limit(1)).first() is None:
        _update(connection, rescore_id, closed_at=func.now())


def _update(connection: Connection, rescore_id: int, **values: Any) -> None:
    connection.execute(update(rescores).where(rescores.c.rescore_id == rescore_id).values(values))


def _audit(connection: Connection, issue: Issue, run_id: str, trajectory_ids: Sequence[int]) -> None:
    same = and_(trajectories.c.run_id == run_id, trajectories.c.trajectory_id == rescored.c.trajectory_id)
    now = {"new_reward": trajectories.c.reward, "new_scores": trajectories.c.scores, "settled_at": func.now()}
    mine = update(rescored).where(rescored.c.issue_id == issue.issue_id, rescored.c.settled_at.is_(None), same)
    connection.execute(mine.where(trajectories.c.trajectory_id == any_of(trajectory_ids)).values(now))


def _completion(row: Row[Any]) -> Completion:
    return Completion(
        token_ids=np.frombuffer(row.token_ids, "<i4"),
        logprobs=np.frombuffer(row.logprobs, "<f4"),
        text=row.text,
        finish_reason=row.finish_reason,
        policy_version=row.policy_version,
        spans=tuple((version, tokens) for version, tokens in row.spans or ()),
    )
