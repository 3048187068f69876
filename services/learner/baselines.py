"""What the objective is compared with: Dr. GRPO, RLOO and online DPO over whole sequences, pure.

The same inputs as `objective.trajectory_balance`: a log-probability per trajectory and an explicit `group` index,
so that a comparison changes one call. All but online DPO assume that the policy that sampled is near the one that
is trained; trajectory balance does not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from services.learner.objective import group_mean


def dr_grpo(logprob: Tensor, behaviour_logprob: Tensor, *, reward: Tensor, group: Tensor, clip: float = 0.2) -> Tensor:
    """Dr. GRPO (arXiv:2503.20783): the group mean as baseline, no division by deviation or length.

    PPO's clipped surrogate with one importance ratio per sequence in place of one per token. Where the policy
    itself has sampled, every ratio is 1 and the gradient is that of the paper, -(r - mean r) grad log pi.

    Args:
        logprob: [trajectories] float32, sum of log pi over the completion tokens, with gradient.
        behaviour_logprob: [trajectories] float32, the same sum under the policy that sampled.
        reward: [trajectories] float32.
        group: [trajectories] int64 in 0 .. groups-1; equal where the prompt is shared.
        clip: how far from 1 a ratio may go before it stops moving the policy.

    Returns:
        Scalar loss, a mean over the trajectories.
    """
    advantage = reward - group_mean(reward, group)
    ratio = (logprob - behaviour_logprob.detach()).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


def rloo(logprob: Tensor, ref_logprob: Tensor, *, reward: Tensor, beta: Tensor, group: Tensor) -> Tensor:
    """REINFORCE leave-one-out (arXiv:2402.14740): the mean of the group's others as baseline.

    The KL penalty is part of the reward, r - beta (log pi - log pi_ref). In a group of K its gradient is that of
    trajectory balance times (beta / 2) K / (K - 1). A trajectory alone in its group has no baseline and counts 0.

    Args:
        logprob: [trajectories] float32, sum of log pi over the completion tokens, with gradient.
        ref_logprob: [trajectories] float32, the same sum under the frozen reference.
        reward: [trajectories] float32.
        beta: [trajectories] float32.
        group: [trajectories] int64 in 0 .. groups-1; equal where the prompt is shared.

    Returns:
        Scalar loss, a mean over the trajectories.
    """
    shaped = reward - beta * (logprob - ref_logprob).detach()
    size = torch.bincount(group)[group]  # [trajectories]
    advantage = (shaped - group_mean(shaped, group)) * size / (size - 1).clamp(min=1)
    return -(advantage * logprob).mean()


def online_dpo(logprob: Tensor, ref_logprob: Tensor, *, reward: Tensor, beta: Tensor, group: Tensor) -> Tensor:
    """Online DPO (arXiv:2402.04792; the loss is equation 7 of arXiv:2305.18290): the best against the worst.

    In each group the trajectory of highest reward is preferred to the one of lowest, the first of equals:
    -log sigmoid(beta (log-ratio of the best - log-ratio of the worst)). A group of equal rewards prefers nothing
    and is left out.

    Args:
        logprob: [trajectories] float32, sum of log pi over the completion tokens, with gradient.
        ref_logprob: [trajectories] float32, the same sum under the frozen reference.
        reward: [trajectories] float32.
        beta: [trajectories] float32; that of the best counts.
        group: [trajectories] int64 in 0 .. groups-1; equal where the prompt is shared.

    Returns:
        Scalar loss, a mean over the groups with a preference; 0 if there are none.
    """
    members = [torch.nonzero(group == g).squeeze(1) for g in sorted(set(group.tolist()))]
    best = torch.stack([m[reward[m].argmax()] for m in members])  # [groups]
    worst = torch.stack([m[reward[m].argmin()] for m in members])  # [groups]
    log_ratio = logprob - ref_logprob.detach()
    losses = -logsigmoid(beta[best] * (log_ratio[best] - log_ratio[worst]))
    prefers = reward[best] > reward[worst]
    return (losses * prefers).sum() / prefers.sum().clamp(min=1)
