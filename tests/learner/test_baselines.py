"""The losses that the objective is compared with, against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import pytest
import torch
from torch import Tensor

from services.learner.baselines import dr_grpo, online_dpo, rloo
from services.learner.objective import trajectory_balance

#: Two groups, mixed: rewards 1, 0, 0 and 1, 3.
GROUP: Final = torch.tensor([0, 1, 0, 1, 0])
REWARD: Final = torch.tensor([1.0, 1.0, 0.0, 3.0, 0.0])
LOGPROB: Final = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0])
BETA: Final = torch.full((5,), 0.5)


def gradient(loss: Callable[[Tensor], Tensor], logprob: Tensor = LOGPROB) -> Tensor:
    leaf = logprob.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def test_dr_grpo_on_policy_moves_by_the_reward_above_the_group_s_mean() -> None:
    got = gradient(lambda logprob: dr_grpo(logprob, LOGPROB, reward=REWARD, group=GROUP))
    advantage = torch.tensor([2 / 3, -1.0, -1 / 3, 1.0, -1 / 3])
    torch.testing.assert_close(got, -advantage / 5)


def test_dr_grpo_is_not_scaled_by_the_spread_of_rewards() -> None:
    wide = gradient(lambda logprob: dr_grpo(logprob, LOGPROB, reward=10 * REWARD, group=GROUP))
    narrow = gradient(lambda logprob: dr_grpo(logprob, LOGPROB, reward=REWARD, group=GROUP))
    torch.testing.assert_close(wide, 10 * narrow)


def test_dr_grpo_clips_the_ratio_of_a_sequence_only_where_that_bounds_the_gain() -> None:
    # One group, advantages 0.5 and -0.5, both ratios 2: the gain is clipped at 1.2, the loss is not.
    reward, group, behaviour = torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.int64), torch.zeros(2)
    logprob = torch.full((2,), math.log(2))
    assert dr_grpo(logprob, behaviour, reward=reward, group=group).item() == pytest.approx(-(0.6 - 1.0) / 2)
    got = gradient(lambda logprob: dr_grpo(logprob, behaviour, reward=reward, group=group), logprob)
    torch.testing.assert_close(got, torch.tensor([0.0, 0.5]))


def test_rloo_compares_each_trajectory_with_the_others_of_its_group() -> None:
    got = gradient(lambda logprob: rloo(logprob, LOGPROB, reward=REWARD, beta=BETA, group=GROUP))
    advantage = torch.tensor([1.0, -2.0, -0.5, 2.0, -0.5])
    torch.testing.assert_close(got, -advantage / 5)


def test_rloo_pays_for_the_distance_to_the_reference() -> None:
    # Rewards 1 and 1, log ratios 0 and 2 at beta 0.5: what counts is 1 and 0.
    reward, group, beta = torch.ones(2), torch.zeros(2, dtype=torch.int64), torch.full((2,), 0.5)
    logprob, ref_logprob = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -4.0])
    got = gradient(lambda x: rloo(x, ref_logprob, reward=reward, beta=beta, group=group), logprob)
    torch.testing.assert_close(got, torch.tensor([-0.5, 0.5]))
    assert rloo(logprob, ref_logprob, reward=reward, beta=beta, group=group).item() == pytest.approx(-0.5)


def test_rloo_gives_a_trajectory_without_company_no_gradient() -> None:
    alone = torch.tensor([0])
    got = gradient(lambda x: rloo(x, x.detach(), reward=alone + 1.0, beta=BETA[:1], group=alone), LOGPROB[:1])
    assert got.tolist() == [0.0]


def test_trajectory_balance_on_policy_is_rloo_up_to_its_factor() -> None:
    group = torch.tensor([0, 0, 1, 1])
    fixed = {"reward": torch.tensor([1.0, 0.0, 0.5, 2.0]), "beta": torch.full((4,), 0.2), "group": group}
    ref_logprob = torch.tensor([-1.5, -1.0, -3.0, -4.5])
    balance = gradient(lambda x: trajectory_balance(x, ref_logprob, **fixed).loss, LOGPROB[:4])
    leave_one_out = gradient(lambda x: rloo(x, ref_logprob, **fixed), LOGPROB[:4])
    torch.testing.assert_close(leave_one_out, balance * (0.2 / 2) * (2 / 1))


def test_online_dpo_prefers_the_best_of_a_group_to_its_worst() -> None:
    # Log ratios: best 1, worst -1 in group 0; best 0, worst 2 in group 1.
    ref_logprob = torch.tensor([-2.0, -4.0, -2.0, -4.0, -5.0])
    loss = online_dpo(LOGPROB, ref_logprob, reward=REWARD, beta=BETA, group=GROUP)
    by_hand = [math.log1p(math.exp(-0.5 * 2)), math.log1p(math.exp(0.5 * 2))]
    assert loss.item() == pytest.approx(sum(by_hand) / 2)


def test_online_dpo_moves_the_pair_apart_and_leaves_the_others_alone() -> None:
    got = gradient(lambda x: online_dpo(x, LOGPROB, reward=REWARD, beta=BETA, group=GROUP))
    # sigmoid(0) beta / groups = 0.5 * 0.5 / 2; the first of the two worst of group 0 is the third trajectory.
    torch.testing.assert_close(got, torch.tensor([-0.125, 0.125, 0.125, -0.125, 0.0]))


def test_online_dpo_leaves_out_a_group_that_prefers_nothing() -> None:
    reward = torch.tensor([1.0, 2.0, 0.0, 2.0, 0.0])
    mixed = online_dpo(LOGPROB, LOGPROB, reward=reward, beta=BETA, group=GROUP)
    assert mixed.item() == pytest.approx(math.log(2))
    none = gradient(lambda x: online_dpo(x, LOGPROB, reward=torch.ones(5), beta=BETA, group=GROUP))
    assert none.tolist() == [0.0] * 5


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [1, 0, 4, 2, 3]])
def test_no_order_of_trajectories_changes_a_baseline(order: list[int]) -> None:
    reward = torch.tensor([1.0, 1.0, 0.5, 3.0, 0.0])  # without ties
    ref_logprob = torch.tensor([-2.0, -4.0, -2.5, -4.0, -5.0])

    def losses(rows: list[int]) -> list[float]:
        fixed = {"reward": reward[rows], "beta": BETA[rows], "group": GROUP[rows]}
        surrogate = dr_grpo(LOGPROB[rows], ref_logprob[rows], reward=reward[rows], group=GROUP[rows])
        others = [loss(LOGPROB[rows], ref_logprob[rows], **fixed) for loss in (rloo, online_dpo)]
        return [float(loss) for loss in (surrogate, *others)]

    assert losses(order) == pytest.approx(losses([0, 1, 2, 3, 4]), rel=1e-5)
