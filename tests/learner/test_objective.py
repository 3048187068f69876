"""The objective's check values: identities of the paper, its optimum, its anchors, and what the original got wrong."""

from __future__ import annotations

from typing import Final

import pytest
import torch
from torch import Tensor

from services.learner.objective import TrajectoryBalance, estimate_log_z, group_mean, trajectory_balance

#: Three groups of unequal size, mixed, each with its own beta.
GROUP: Final = torch.tensor([0, 1, 2, 1, 0, 1, 2, 1, 1])
BETA: Final = torch.tensor([0.1, 0.25, 0.5])[GROUP]
LOGPROB: Final = torch.tensor([-3.0, -1.5, -7.25, -2.0, -4.5, -0.5, -6.0, -9.0, -3.25])
REF_LOGPROB: Final = torch.tensor([-3.5, -1.0, -7.0, -4.0, -4.0, -0.75, -5.0, -9.5, -3.0])
REWARD: Final = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.5, -1.0, 0.25, 1.0])


def balance(
    logprob: Tensor = LOGPROB,
    ref_logprob: Tensor = REF_LOGPROB,
    *,
    reward: Tensor = REWARD,
    beta: Tensor = BETA,
    group: Tensor = GROUP,
    log_z: Tensor | None = None,
) -> TrajectoryBalance:
    return trajectory_balance(logprob, ref_logprob, reward=reward, beta=beta, group=group, log_z=log_z)


def gradient(logprob: Tensor = LOGPROB, **changes: Tensor) -> Tensor:
    """dL / d log pi of every trajectory."""
    leaf = logprob.clone().requires_grad_()
    return torch.autograd.grad(balance(leaf, **changes).loss, leaf)[0]


def test_the_loss_is_the_squared_residual_of_a_group_worked_out_by_hand() -> None:
    # log pi - log pi_ref - r / beta is 1, -1, -3 at beta 0.5; log Z is 1; the residuals are 2, 0, -2.
    result = trajectory_balance(
        torch.tensor([-1.0, -2.0, -3.0]),
        torch.tensor([-2.0, -3.0, -2.0]),
        reward=torch.tensor([0.0, 1.0, 1.0]),
        beta=torch.full((3,), 0.5),
        group=torch.zeros(3, dtype=torch.int64),
    )
    assert result.loss.item() == pytest.approx(8 / 3)
    assert result.log_z.tolist() == [1.0, 1.0, 1.0]
    assert result.log_ratio.tolist() == [1.0, 1.0, -1.0]


def test_the_loss_is_the_spread_within_groups_averaged_over_trajectories() -> None:
    value = LOGPROB - REF_LOGPROB - REWARD / BETA
    squares = torch.cat([value[g == GROUP] - value[g == GROUP].mean() for g in range(3)]).square()
    assert balance().loss.item() == pytest.approx(float(squares.mean()), rel=1e-5)


def test_the_loss_of_one_group_is_its_population_variance() -> None:
    mine = GROUP == 1
    value = (LOGPROB - REF_LOGPROB - REWARD / BETA)[mine]
    result = balance(
        LOGPROB[mine], REF_LOGPROB[mine], reward=REWARD[mine], beta=BETA[mine], group=torch.zeros(5, dtype=torch.int64)
    )
    torch.testing.assert_close(result.loss, value.var(correction=0))


def test_the_gradient_is_the_advantage_of_the_paper() -> None:
    log_ratio = LOGPROB - REF_LOGPROB
    advantage = (REWARD - group_mean(REWARD, GROUP)) - BETA * (log_ratio - group_mean(log_ratio, GROUP))
    torch.testing.assert_close(gradient(), -2 / (BETA * len(GROUP)) * advantage)


@pytest.mark.parametrize("log_ratio", [0.0, 0.1, -1.7, 37.3])
def test_a_group_whose_trajectories_are_all_alike_has_a_gradient_of_exactly_zero(log_ratio: float) -> None:
    alike = {"reward": torch.full((4,), 0.7), "beta": torch.full((4,), 0.014), "group": torch.zeros(4).long()}
    assert (
        gradient(torch.full((4,), log_ratio - 9.3), ref_logprob=torch.full((4,), -9.3), **alike).tolist() == [0.0] * 4
    )


def test_loss_and_gradient_are_zero_at_the_optimum_and_log_z_is_the_true_one() -> None:
    # Every response there is: pi_ref over three of them, and pi proportional to pi_ref exp(r / beta).
    ref_logprob = torch.tensor([0.5, 0.3, 0.2]).log()
    reward, beta = torch.tensor([1.0, 0.0, 0.4]), torch.full((3,), 0.25)
    log_z = torch.logsumexp(ref_logprob + reward / beta, dim=0)
    optimum = (ref_logprob + reward / beta - log_z).requires_grad_()
    group = torch.zeros(3, dtype=torch.int64)
    result = trajectory_balance(optimum, ref_logprob, reward=reward, beta=beta, group=group)
    torch.autograd.backward(result.loss)
    assert optimum.grad is not None
    assert result.loss.item() == pytest.approx(0, abs=1e-12)
    assert optimum.grad.abs().max().item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(result.log_z, log_z.expand(3))


def test_a_shift_of_a_group_s_rewards_moves_its_log_z_by_shift_over_beta_and_nothing_else() -> None:
    shift = torch.tensor([2.0, -1.0, 0.5])[GROUP]
    plain, shifted = balance(), balance(reward=REWARD + shift)
    torch.testing.assert_close(shifted.log_z - plain.log_z, shift / BETA)
    torch.testing.assert_close(shifted.loss, plain.loss)
    torch.testing.assert_close(gradient(reward=REWARD + shift), gradient())


def test_no_order_of_trajectories_and_no_numbering_of_groups_changes_anything() -> None:
    order = torch.tensor([4, 8, 0, 2, 7, 1, 6, 5, 3])
    renamed = torch.tensor([2, 0, 1])[GROUP]
    changes = {"ref_logprob": REF_LOGPROB[order], "reward": REWARD[order], "beta": BETA[order]}
    changes["group"] = renamed[order]
    torch.testing.assert_close(balance(LOGPROB[order], **changes).loss, balance().loss)
    torch.testing.assert_close(balance(LOGPROB[order], **changes).log_z, balance().log_z[order])
    torch.testing.assert_close(gradient(LOGPROB[order], **changes), gradient()[order])


def test_a_trajectory_drawn_twice_counts_twice() -> None:
    # With r / beta = 3, 0: the variance of {3, 0} is 2.25, that of {3, 0, 0} is 2.
    zeros = torch.zeros(3)
    twice = {"reward": torch.tensor([3.0, 0.0, 0.0]), "beta": torch.ones(3), "group": zeros.long()}
    once = {name: value[:2] for name, value in twice.items()}
    assert trajectory_balance(zeros[:2], zeros[:2], **once).loss.item() == pytest.approx(2.25)
    assert trajectory_balance(zeros, zeros, **twice).loss.item() == pytest.approx(2.0)


@pytest.mark.parametrize(("beta", "target", "loss"), [(0.014, 71.4, 1224), (0.004, 250, 15_000)])
def test_the_first_loss_on_gsm8k_is_the_variance_of_a_coin_over_beta_squared(
    beta: float, target: float, loss: float
) -> None:
    reward = torch.tensor([1.0] * 8 + [0.0] * 12)  # a pass rate of 0.4 among 20
    same, betas, group = torch.full((20,), -37.5), torch.full((20,), beta), torch.zeros(20, dtype=torch.int64)
    result = trajectory_balance(same, same, reward=reward, beta=betas, group=group)
    assert (reward / betas).max().item() == pytest.approx(target, rel=1e-3)
    assert result.loss.item() == pytest.approx(loss, rel=1e-3)
    assert result.log_z[0].item() == pytest.approx(0.4 / beta, rel=1e-5)


def test_a_group_of_equal_rewards_gives_exactly_no_gradient_before_the_first_step() -> None:
    same = torch.full((20,), -37.1)
    group, beta = torch.zeros(20, dtype=torch.int64), torch.full((20,), 0.014)
    for reward in (0.0, 1.0, 0.3):
        changes = {"reward": torch.full((20,), reward), "beta": beta, "group": group, "ref_logprob": same}
        assert gradient(same, **changes).count_nonzero() == 0


def test_a_constant_added_to_both_log_probabilities_cancels() -> None:
    torch.testing.assert_close(balance(LOGPROB + 8, REF_LOGPROB + 8).loss, balance().loss)


def test_the_reference_and_log_z_carry_no_gradient() -> None:
    ref_logprob = REF_LOGPROB.clone().requires_grad_()
    result = balance(LOGPROB.clone().requires_grad_(), ref_logprob)
    torch.autograd.backward(result.loss)
    assert ref_logprob.grad is None
    assert not result.log_z.requires_grad
    assert not result.log_ratio.requires_grad


def test_a_group_in_two_parts_with_the_log_z_of_the_whole_is_the_group() -> None:
    mine = GROUP == 1
    whole = {"reward": REWARD[mine], "beta": BETA[mine], "group": torch.zeros(5, dtype=torch.int64)}
    log_z = estimate_log_z(LOGPROB[mine] - REF_LOGPROB[mine], **whole)[:1]
    expected = trajectory_balance(LOGPROB[mine], REF_LOGPROB[mine], **whole).loss
    parts = [
        trajectory_balance(
            LOGPROB[mine][part], REF_LOGPROB[mine][part], log_z=log_z, **{k: v[part] for k, v in whole.items()}
        ).loss
        * (part.stop - part.start)
        for part in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(sum(parts) / 5, expected)


def original(
    logprob: Tensor, ref_logprob: Tensor, *, scores: Tensor, beta: float, k: int, inds: Tensor, start: int
) -> tuple[Tensor, Tensor]:
    """The loss and log Z of the released trainer, for a micro-batch of rows `inds` that starts at `start`."""
    targets = (-logprob + ref_logprob[inds]) + scores[inds] / beta
    log_z = targets.view(k, -1).mean(0).repeat(k)
    residual = log_z + (logprob - ref_logprob[inds]) - scores[start : start + len(inds)] / beta
    return residual.square().mean(), log_z


def test_the_original_mixes_two_prompts_of_a_micro_batch_and_the_group_index_does_not() -> None:
    # Prompt-major rows, as the original's buffer lays them: four responses that fail, then four that pass.
    scores = torch.tensor([0.0] * 4 + [1.0] * 4)
    zeros, rows = torch.zeros(8), torch.arange(8)
    ours = trajectory_balance(zeros, zeros, reward=scores, beta=torch.ones(8), group=rows // 4)
    loss, log_z = original(zeros, zeros, scores=scores, beta=1.0, k=4, inds=rows, start=0)
    assert log_z.tolist() == [0.5] * 8
    assert ours.log_z.tolist() == [0.0] * 4 + [1.0] * 4
    assert (loss.item(), ours.loss.item()) == (0.25, 0.0)


def test_the_original_is_right_where_a_micro_batch_is_one_prompt() -> None:
    scores = torch.tensor([0.0, 1.0, 1.0, 0.0])
    logprob, ref_logprob = LOGPROB[:4], REF_LOGPROB[:4]
    ours = trajectory_balance(
        logprob, ref_logprob, reward=scores, beta=torch.full((4,), 0.5), group=torch.zeros(4, dtype=torch.int64)
    )
    loss, _ = original(logprob, ref_logprob, scores=scores, beta=0.5, k=4, inds=torch.arange(4), start=0)
    torch.testing.assert_close(loss, ours.loss)


def test_the_original_takes_a_slice_of_the_scores_where_rows_are_permuted() -> None:
    scores = torch.tensor([1.0, 1.0, 0.0, 0.0])
    zeros, inds = torch.zeros(4), torch.tensor([1, 2, 3, 0])
    ours = trajectory_balance(
        zeros, zeros, reward=scores[inds], beta=torch.ones(4), group=torch.zeros(4, dtype=torch.int64)
    )
    # The residual, which is the gradient but for a factor: theirs pulls row 0 down for the reward of another.
    _, log_z = original(zeros, zeros, scores=scores, beta=1.0, k=4, inds=inds, start=0)
    theirs = (log_z - scores[:4]).tolist()
    assert theirs == [-0.5, -0.5, 0.5, 0.5]
    assert (ours.log_z - scores[inds]).tolist() == [-0.5, 0.5, 0.5, -0.5]


def test_the_power_of_the_reference_is_part_of_the_target() -> None:
    # With w = 0 the target is exp(r / beta) alone: its softmax is the optimum, whatever the reference says.
    reward, beta = torch.tensor([1.0, 0.0, 0.4]), torch.full((3,), 0.25)
    optimum = (reward / beta).log_softmax(0)
    group = torch.zeros(3, dtype=torch.int64)
    ref_logprob = torch.tensor([-9.0, -1.0, -4.0])
    for weight, is_optimum in ((0.0, True), (1.0, False)):
        result = trajectory_balance(
            optimum, ref_logprob, reward=reward, beta=beta, group=group, reference_weight=torch.full((3,), weight)
        )
        assert (result.loss.item() < 1e-9) == is_optimum
        torch.testing.assert_close(result.log_ratio, optimum - ref_logprob)
