"""The objective: VarGrad trajectory balance (arXiv:2503.18929, section 3 and appendix A), pure.

For each prompt x the policy pi is pulled towards pi_ref(y|x)^w exp(r(x,y)/beta), with w = 1 in the paper. Which
trajectories share a log Z is said by an explicit `group` index, never by the layout of the batch, so any order and
any mix is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TrajectoryBalance:
    """The loss, and what it was made of. Only `loss` carries a gradient."""

    loss: Tensor  # scalar: mean squared residual over the trajectories
    log_z: Tensor  # [trajectories], one value per group
    log_ratio: Tensor  # [trajectories], log pi - log pi_ref


def trajectory_balance(
    logprob: Tensor,
    ref_logprob: Tensor,
    *,
    reward: Tensor,
    beta: Tensor,
    group: Tensor,
    reference_weight: Tensor | float = 1.0,
    log_z: Tensor | None = None,
) -> TrajectoryBalance:
    """Equation 5 of the paper: the mean of (log Z + log pi - w log pi_ref - r / beta)^2.

    Over a whole group this is the population variance of log pi - w log pi_ref - r / beta. A trajectory drawn
    twice counts twice. Adding a constant to the rewards of a group moves its log Z and nothing else.

    Args:
        logprob: [trajectories] float32, sum of log pi over the completion tokens, with gradient.
        ref_logprob: [trajectories] float32, the same sum under the frozen reference.
        reward: [trajectories] float32.
        beta: [trajectories] float32, above 0; each group its own.
        group: [trajectories] int64 in 0 .. groups-1; equal where the prompt is shared.
        reference_weight: [trajectories] float32 or one number: w, the power of pi_ref in the target.
        log_z: [trajectories] or [1], the estimate to use where a group is not here as a whole (`estimate_log_z`
            of all of it).
    """
    ref_logprob = ref_logprob.detach()
    tilt = logprob - reference_weight * ref_logprob
    if log_z is None:
        log_z = estimate_log_z(tilt, reward=reward, beta=beta, group=group)
    residual = log_z - (reward / beta - tilt)  # in this order: exactly 0 where a group is all alike
    return TrajectoryBalance(
        loss=residual.square().mean(), log_z=log_z.expand_as(tilt), log_ratio=(logprob - ref_logprob).detach()
    )


def estimate_log_z(tilt: Tensor, *, reward: Tensor, beta: Tensor, group: Tensor) -> Tensor:
    """Equation 4: log Z(x), estimated as the group mean of r / beta - (log pi - w log pi_ref), held constant.

    Returns one value per trajectory, [trajectories]. The mean residual of a group is 0, so holding log Z
    constant does not change the gradient.
    """
    return group_mean(reward / beta - tilt.detach(), group)


def group_mean(value: Tensor, group: Tensor) -> Tensor:
    """The mean over each element's group, [trajectories] -> [trajectories].

    Summed in float64, so that equal values have exactly their value as mean: a group that says nothing gives a
    gradient of exactly zero, where rounding would be a direction that Adam blows up to a full step.
    """
    total = torch.zeros(int(group.max()) + 1, dtype=torch.float64, device=value.device)
    count = torch.zeros_like(total)
    total.index_add_(0, group, value.double())
    count.index_add_(0, group, torch.ones_like(value, dtype=torch.float64))
    return (total / count)[group].to(value.dtype)
