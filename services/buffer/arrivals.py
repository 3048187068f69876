"""What came back for an order, as plain rows: parsed and judged without a database.

Each completion of an order ends in exactly one way: kept (then stored, or a duplicate of what is stored), expired
(too old to train on), or dead-lettered (its row is wrong). So every order settles in full and the ledger balances.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

import numpy as np

from tba_common.kafka import Record
from tba_common.messages import Completion, Int32s, Rollout, Score, Trajectories

#: What makes two trajectories the same one: the prompt and the fingerprint.
Key = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Order:
    """An issue as the tables know it."""

    issue_id: int
    task_id: int
    prompt_id: int
    purpose: str
    policy_version: int | None
    completions: int
    in_flight: bool
    prompt_token_ids: bytes | None  # int32; None until the first rollout of the prompt came back


class Row(NamedTuple):
    """One completion, ready for the tables. A tuple, because thousands are made each second."""

    issue_id: int
    completion: int  # which of the order's
    task_id: int
    prompt_id: int
    fingerprint: bytes
    key: Key
    policy_version: int
    reward: float
    tokens: int
    temperature: float
    top_p: float
    finish_reason: str
    scores: str  # JSON
    spans: tuple[tuple[int, int], ...]  # empty where one version wrote every token
    token_ids: bytes
    logprobs: bytes
    text: str


@dataclass(slots=True)
class Outcome:
    """How the completions of one order ended; `kept` are the keys of its drawable ones."""

    order: Order
    kept: list[Key] = field(default_factory=list)
    newest_version: int = -1  # of the kept ones
    dead_lettered: int = 0
    expired: int = 0
    evaluated: int = 0
    work_seconds: float | None = None  # of sampling and scoring; None where nobody answered


@dataclass(slots=True)
class Plan:
    """What one ingest transaction has to do about the trajectories that came."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)  # by issue
    rows: dict[Key, Row] = field(default_factory=dict)  # one per key, the version that wins
    first_issue: dict[Key, int] = field(default_factory=dict)  # that brought the key in this batch
    evaluations: list[Row] = field(default_factory=list)
    prompt_token_ids: dict[int, bytes] = field(default_factory=dict)  # of prompts seen for the first time
    rejected: list[tuple[Record, str]] = field(default_factory=list)
    redelivered: int = 0  # orders that had been settled before


def fingerprint(token_ids: Int32s) -> UUID:
    """Return blake2b-128 of the little-endian int32 tokens: equal answers have equal fingerprints."""
    return UUID(bytes=_digest(token_ids.astype("<i4", copy=False).tobytes()))


def _digest(token_ids: bytes) -> bytes:
    return blake2b(token_ids, digest_size=16).digest()


def scores_of(rollout: Rollout) -> list[str]:
    """Return what the scorers said of each completion, as the JSON of the tables; details are finite numbers only.

    Written by hand from what a scorer says of all: thousands are made each second.
    """
    if not rollout.scores:
        return ["[]"] * len(rollout.completions)
    return [f"[{', '.join(said)}]" for said in zip(*map(_said_of, rollout.scores), strict=True)]


def _said_of(score: Score) -> list[str]:
    of_all = {"scorer": score.scorer, "version": score.version, "seconds": score.seconds, "attempts": score.attempts}
    head = json.dumps(of_all)[:-1]
    values = score.values.tolist()
    if not score.details:
        return [f'{head}, "value": {value!r}, "details": {{}}}}' for value in values]
    named = {name: column.tolist() for name, column in score.details.items()}
    finite = [{n: v[i] for n, v in named.items() if math.isfinite(v[i])} for i in range(len(values))]
    said = zip(values, finite, strict=True)
    return [f'{head}, "value": {value!r}, "details": {json.dumps(details)}}}' for value, details in said]


def judge(arrivals: Iterable[tuple[Record, Trajectories]], orders: Mapping[int, Order], *, oldest_version: int) -> Plan:
    """Decide the fate of every completion. Training data older than `oldest_version` has expired."""
    plan = Plan()
    for record, trajectories in arrivals:
        issue_id = trajectories.rollout.prompt.issue_id
        order = orders.get(issue_id)
        if order is None:
            plan.rejected.append((record, f"unknown issue {issue_id}"))
        elif not order.in_flight or issue_id in plan.outcomes:
            plan.redelivered += 1
        else:
            _settle(plan, order, record, trajectories, oldest_version)
    return plan


def bury(plan: Plan, dead_issue_ids: Iterable[int], orders: Mapping[int, Order]) -> None:
    """Settle the orders that another service could not serve: all their completions are dead-lettered."""
    for issue_id in dead_issue_ids:
        order = orders.get(issue_id)
        if order is not None and order.in_flight and issue_id not in plan.outcomes:
            plan.outcomes[issue_id] = Outcome(order, dead_lettered=order.completions)


def _settle(plan: Plan, order: Order, record: Record, trajectories: Trajectories, oldest_version: int) -> None:
    rollout = trajectories.rollout
    work_seconds = rollout.seconds + sum(score.seconds for score in rollout.scores)
    outcome = plan.outcomes[order.issue_id] = Outcome(order, work_seconds=work_seconds)
    tokens = rollout.prompt_token_ids.astype("<i4").tobytes()
    if fault := _fault_of_group(order, trajectories, plan.prompt_token_ids.get(order.prompt_id), tokens):
        outcome.dead_lettered = order.completions
        plan.rejected.append((record, fault))
        return
    faults = []
    is_finite, scores = _all_finite(trajectories), scores_of(rollout)
    for index, completion in enumerate(trajectories.rollout.completions):
        reward = trajectories.rewards.item(index)
        fault = None if is_finite else _fault_of_numbers(trajectories, index)
        if fault := fault or _fault_of_completion(order, completion):
            outcome.dead_lettered += 1
            faults.append(f"completion {index}: {fault}")
        elif order.purpose == "eval":
            outcome.evaluated += 1
            plan.evaluations.append(_row(order, index, trajectories, reward, scores[index]))
        elif completion.policy_version < oldest_version:
            outcome.expired += 1
        else:
            _keep(plan, outcome, _row(order, index, trajectories, reward, scores[index]))
    if faults:
        plan.rejected.append((record, "; ".join(faults)))
    if order.prompt_token_ids is None:
        plan.prompt_token_ids.setdefault(order.prompt_id, tokens)


def _fault_of_group(order: Order, trajectories: Trajectories, seen: bytes | None, tokens: bytes) -> str | None:
    rollout = trajectories.rollout
    known = order.prompt_token_ids or seen
    if (rollout.prompt.prompt_id, rollout.prompt.purpose) != (order.prompt_id, order.purpose):
        got = f"{rollout.prompt.purpose} of prompt {rollout.prompt.prompt_id}"
        return f"issue {order.issue_id}: expected {order.purpose} of prompt {order.prompt_id}, got {got}"
    if len(rollout.completions) != order.completions:
        return f"issue {order.issue_id}: {len(rollout.completions)} of {order.completions} completions"
    if not tokens:
        return f"prompt {order.prompt_id}: no prompt tokens"
    if known is not None and known != tokens:
        return f"prompt {order.prompt_id}: its tokens differ from those of its first rollout"
    return fault_of_scores(rollout, order.completions)


def fault_of_scores(rollout: Rollout, completions: int) -> str | None:
    """Name the first scorer that does not speak of each completion; None if all do."""
    for score in rollout.scores:
        lengths = {len(score.values), *map(len, score.details.values())}
        if lengths != {completions} or not math.isfinite(score.seconds):
            got = f"{sorted(lengths)} in {score.seconds} seconds"
            return f"issue {rollout.prompt.issue_id}: expected {completions} scores of {score.scorer}, got {got}"
    return None


def _all_finite(trajectories: Trajectories) -> bool:
    """Whether all numbers of a group are: one look at all of them is several times cheaper than one at each."""
    rollout = trajectories.rollout
    judged = [trajectories.rewards, *(score.values for score in rollout.scores)]
    return bool(np.isfinite(np.concatenate([*judged, *(c.logprobs for c in rollout.completions)])).all())


def _fault_of_numbers(trajectories: Trajectories, index: int) -> str | None:
    rollout = trajectories.rollout
    judged = [trajectories.rewards.item(index), *(score.values.item(index) for score in rollout.scores)]
    if not all(map(math.isfinite, judged)):
        return f"reward and scores {judged}, expected finite numbers"
    if not np.isfinite(rollout.completions[index].logprobs).all():
        return "a log-probability is not finite"
    return None


def _fault_of_completion(order: Order, completion: Completion) -> str | None:
    if len(completion.token_ids) == 0:
        return "no tokens, expected at least one"
    if order.purpose == "eval" and completion.policy_version != order.policy_version:
        return f"evaluation of version {order.policy_version} was sampled with version {completion.policy_version}"
    return None


def _keep(plan: Plan, outcome: Outcome, row: Row) -> None:
    """Keep one row per key: the second arrival replaces the first iff its version is not older."""
    outcome.kept.append(row.key)
    outcome.newest_version = max(outcome.newest_version, row.policy_version)
    plan.first_issue.setdefault(row.key, row.issue_id)
    earlier = plan.rows.get(row.key)
    if earlier is None or row.policy_version >= earlier.policy_version:
        plan.rows[row.key] = row


def _row(order: Order, index: int, trajectories: Trajectories, reward: float, scores: str) -> Row:
    rollout = trajectories.rollout
    completion = rollout.completions[index]
    token_ids = completion.token_ids.astype("<i4", copy=False).tobytes()
    said = _digest(token_ids)
    return Row(
        issue_id=order.issue_id,
        completion=index,
        task_id=order.task_id,
        prompt_id=order.prompt_id,
        fingerprint=said,
        key=(order.prompt_id, said),
        policy_version=completion.policy_version,
        reward=reward,
        tokens=len(completion.token_ids),
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        finish_reason=completion.finish_reason,
        scores=scores,
        spans=completion.spans,
        token_ids=token_ids,
        logprobs=completion.logprobs.astype("<f4", copy=False).tobytes(),
        # PostgreSQL cannot hold the NUL character in text; token ids keep the truth.
        text=completion.text.replace("\x00", "\N{REPLACEMENT CHARACTER}"),
    )
