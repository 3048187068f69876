"""One optimiser step from one batch: forward, trajectory balance, backward, clip, AdamW.

How the batch is cut into micro-batches changes memory, never the result: each counts by its share of the draws.
A step whose loss or gradient is not finite is not taken, since one would poison every weight for good.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from services.learner.collate import MicroBatch, split_batch
from services.learner.objective import estimate_log_z, trajectory_balance
from services.learner.policy import Policy
from services.learner.ranks import ALONE, Ranks
from services.learner.schedule import LearningRateSchedule
from tba_common.messages import Group

#: The norm gradients are clipped to, the field's usual value. With Adam their scale, 1/beta, hardly matters.
MAX_GRAD_NORM: Final = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """What a step did. Means are over the batch's draws; a skipped step carries zeros for what was not finite."""

    skipped: bool
    loss: float
    reward: float
    log_z: float
    log_ratio: float
    beta: float
    grad_norm: float  # before clipping
    learning_rate: float
    trajectories: int
    tokens: int  # completion tokens of the draws


class Updater:
    """The policy's optimiser and its schedule. With several ranks, `update` on the leader is `follow` on the others.

    `progress` is called after every pass over a micro-batch, so that a long step is not mistaken for a dead process.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        learning_rate: float,
        schedule: LearningRateSchedule,
        token_budget: int,
        reset_reference_every: int = 0,
        ranks: Ranks = ALONE,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.policy = policy
        self.ranks = ranks
        self.optimizer = torch.optim.AdamW(policy.trained.values(), lr=learning_rate, weight_decay=0.0)
        self._learning_rate = learning_rate
        self._schedule = schedule
        self._token_budget = token_budget
        self.reset_reference_every = reset_reference_every
        self._progress = progress

    def update(self, groups: Sequence[Group], step: int) -> Update:
        """Take optimiser step `step` (1, 2, ...) on a whole batch."""
        self.ranks.send(step, groups)
        return self._take(self._trainable(groups), step)

    def follow(self) -> None:
        """Take the leader's steps until it is over."""
        while (work := self.ranks.receive()) is not None:
            step, groups = work
            self._take(self._trainable(groups), step)

    def _take(self, groups: Sequence[Group], step: int) -> Update:
        learning_rate = self._learning_rate * self._schedule.multiplier(step)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        means = self._backward(groups)
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self.policy.trained.values(), MAX_GRAD_NORM))
        finite = math.isfinite(grad_norm) and bool(means.isfinite().all())
        if finite:
            self.optimizer.step()
        if self.reset_reference_every and step % self.reset_reference_every == 0:
            self.policy.reset_reference()
        loss, reward, log_z, log_ratio, beta = means.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).tolist()
        return Update(
            skipped=not finite,
            loss=loss,
            reward=reward,
            log_z=log_z,
            log_ratio=log_ratio,
            beta=beta,
            grad_norm=grad_norm if math.isfinite(grad_norm) else 0.0,
            learning_rate=learning_rate,
            trajectories=sum(len(group.draws) for group in groups),
            tokens=sum(len(draw.token_ids) for group in groups for draw in group.draws),
        )

    def _trainable(self, groups: Sequence[Group]) -> Sequence[Group]:
        """The groups whose reference log-probabilities are known: all, where the reference is here."""
        if self.policy.reference is not None:
            return groups
        known = [group for group in groups if all(draw.ref_logprob is not None for draw in group.draws)]
        if strangers := sorted({group.task_id for group in groups} - {group.task_id for group in known}):
            log.warning("not trained: the reward of a task has no scorer `reference`", extra={"task_ids": strangers})
        return known

    def _backward(self, groups: Sequence[Group]) -> Tensor:
        """Accumulate the gradient of the batch's mean loss.

        Returns the means of loss, reward, log Z, log ratio and beta over the draws, [5].
        """
        draws = sum(len(group.draws) for group in groups)
        means = torch.zeros(5, device=self.policy.device)
        for unit in self.ranks.share(self._units(groups)):
            ref_logprobs = [self._ref_logprob(part) for part in unit]
            log_z = self._log_z_of_split_group(unit, ref_logprobs) if len(unit) > 1 else None
            for part, ref_logprob in zip(unit, ref_logprobs, strict=True):
                result = trajectory_balance(
                    self.policy.logprob(part.rows)[part.row],
                    ref_logprob,
                    reward=part.reward,
                    beta=part.beta,
                    group=part.group,
                    reference_weight=part.reference_weight,
                    log_z=log_z,
                )
                share = len(part.row) / draws
                torch.autograd.backward(share * result.loss)
                seen = (result.loss, part.reward, result.log_z, result.log_ratio, part.beta)
                means += share * torch.stack([value.detach().mean() for value in seen])
                self._progress()
        if self.ranks.count > 1 and draws:  # without a gradient nothing moves; with one of zero, momentum would
            self.ranks.add_up([means, *map(_gradient, self.policy.trained.values())])
        return means

    def _units(self, groups: Sequence[Group]) -> list[tuple[MicroBatch, ...]]:
        """The batch in units of work, shortest first; small enough that every rank gets some."""
        budget = self._token_budget
        if self.ranks.count > 1 and groups:
            tokens = sum(len(g.prompt_token_ids) + len(draw.token_ids) for g in groups for draw in g.draws)
            budget = min(budget, -(-tokens // self.ranks.count))
        return split_batch(
            groups,
            pad_token_id=self.policy.pad_token_id,
            token_budget=budget,
            device=self.policy.device,
        )

    def _log_z_of_split_group(self, parts: Sequence[MicroBatch], ref_logprobs: Sequence[Tensor]) -> Tensor:
        """log Z of a group too large for one micro-batch: a pass without gradients over all of it, [1]."""
        tilt = []
        for part, ref_logprob in zip(parts, ref_logprobs, strict=True):
            with torch.no_grad():
                tilt.append(self.policy.logprob(part.rows)[part.row] - part.reference_weight * ref_logprob)
            self._progress()
        return estimate_log_z(
            torch.cat(tilt),
            reward=torch.cat([part.reward for part in parts]),
            beta=torch.cat([part.beta for part in parts]),
            group=torch.cat([part.group for part in parts]),
        )[:1]

    def _ref_logprob(self, part: MicroBatch) -> Tensor:
        """log pi_ref of each draw, [draws]: from the reference here, or from the scorer that stands in for it."""
        if self.policy.reference is None:
            return part.ref_logprob
        logprob = self.policy.ref_logprob(part.rows)[part.row]
        self._progress()
        return logprob


def _gradient(parameter: Tensor) -> Tensor:
    """The gradient of a parameter; zero where this rank had no part of the batch."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
