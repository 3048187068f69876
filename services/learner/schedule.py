"""What changes with the step: the learning rate of the run and the target distribution of each task. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tba_common.tasks import Ramp, Target


@dataclass(frozen=True)
class LearningRateSchedule:
    """Warm-up, stable, decay: the WSD schedule, written `50/350/600` in steps.

    The rate rises linearly to its peak at the last warm-up step, stays there, then falls along a half cosine
    to 0. Written with one number, `50`, it never decays.
    """

    warmup: int
    stable: int = 0
    decay: int = 0

    @classmethod
    def parse(cls, text: str) -> LearningRateSchedule:
        """Read `warmup` or `warmup/stable/decay`.

        Raises:
            ValueError: neither one nor three whole numbers.
        """
        parts = text.split("/")
        if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
            raise ValueError(f"expected 'warmup' or 'warmup/stable/decay' in steps, such as 50/350/600, got {text!r}")
        return cls(*map(int, parts))

    def multiplier(self, step: int) -> float:
        """The share of the peak rate that optimiser step `step` (1, 2, ...) uses."""
        if step < self.warmup:
            return step / self.warmup
        decayed = step - self.warmup - self.stable
        if self.decay == 0 or decayed <= 0:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(decayed / self.decay, 1.0)))


def beta_at(target: Target, task_step: int) -> float:
    """beta for a batch that `task_step` optimiser steps of its task came before (arXiv:2503.18929, section 3.3).

    Linear from `beta_start` towards `beta`, reached at `anneal_steps`: from then on exactly `beta`.
    """
    if target.beta_start is None or task_step + 1 >= target.anneal_steps:
        return target.beta
    share = task_step / target.anneal_steps
    return target.beta * share + target.beta_start * (1 - share)


@dataclass(frozen=True)
class Strengths:
    """log R(y|x) = reference_weight * log pi_ref(y|x) + r(x,y) / beta, as it stands at one step."""

    beta: float
    reference_weight: float


def strengths_at(target: Target, task_step: int) -> Strengths:
    """The target of a batch that `task_step` optimiser steps of its task came before.

    The temperature divides both terms, so it multiplies beta.
    """
    temperature = ramp_at(target.temperature, task_step)
    return Strengths(
        beta=beta_at(target, task_step) * temperature,
        reference_weight=1 / (ramp_at(target.gamma, task_step) * temperature),
    )


def ramp_at(ramp: Ramp, task_step: int) -> float:
    """The value of a ramp: linear, and from `steps` on exactly its end."""
    if task_step >= ramp.steps:
        return ramp.end
    return ramp.start + (ramp.end - ramp.start) * task_step / ramp.steps
