"""One optimiser step: however it is cut it is the same, and a step that would poison the weights is not taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import pytest
import torch
from torch import Tensor

from services.learner.collate import pad_rows
from services.learner.ranks import ALONE, Ranks
from services.learner.schedule import LearningRateSchedule
from services.learner.update import MAX_GRAD_NORM, Updater
from tba_common.messages import Draw, Group
from tba_common.tasks import Target
from tests.learner.groups import EOS, PROMPT, batch, draw, group

pytestmark = pytest.mark.integration

MakeUpdater = Callable[..., Updater]
T = TypeVar("T")
#: A batch of 2 groups of 4 rows of up to 9 tokens: each group alone, in several parts, each row alone.
BUDGETS: Final = [40, 20, 1]


def weights(updater: Updater) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in updater.policy.model.parameters()]


def gradients(updater: Updater) -> Tensor:
    """The gradient of the last step, after clipping, as one vector."""
    return torch.cat([parameter.grad.flatten() for parameter in updater.policy.model.parameters()])


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("token_budget", BUDGETS)
def test_how_a_batch_is_cut_changes_neither_loss_nor_gradient(make_updater: MakeUpdater, token_budget: int) -> None:
    whole, cut = make_updater(), make_updater(token_budget=token_budget)
    groups = batch(3)
    for step in (1, 2):  # at the second the policy has left its reference
        expected, got = whole.update(groups, step), cut.update(groups, step)
        for name in ("loss", "reward", "log_z", "log_ratio", "beta", "grad_norm"):
            assert getattr(got, name) == pytest.approx(getattr(expected, name), rel=1e-3, abs=1e-5), name
        torch.testing.assert_close(gradients(cut), gradients(whole), rtol=1e-3, atol=1e-5)


def test_a_draw_that_comes_twice_weighs_double(make_updater: MakeUpdater) -> None:
    good, bad = draw(1, [40, EOS], reward=1.0), draw(2, [41, 42, EOS])
    # Rewards 1, 0, 0 at beta 0.1: the variance of 10, 0, 0.
    assert make_updater().update([group(good, bad, bad)], 1).loss == pytest.approx(200 / 9)
    assert make_updater().update([group(good, bad)], 1).loss == pytest.approx(25)


def test_the_report_tells_what_the_step_was_made_of(make_updater: MakeUpdater) -> None:
    groups = [
        group(draw(1, [40, EOS], reward=1.0), draw(2, [41, 42, EOS]), index=0, beta=0.1),
        group(draw(3, [40], reward=1.0), draw(4, [41], reward=1.0), index=1, beta=0.5),
    ]
    update = make_updater(schedule=LearningRateSchedule(warmup=4)).update(groups, 1)
    assert not update.skipped
    assert (update.trajectories, update.tokens) == (4, 7)
    assert update.reward == pytest.approx(0.75)
    assert update.loss == pytest.approx(12.5)  # 25 and 0
    assert update.log_z == pytest.approx((5 + 2) / 2)
    assert update.log_ratio == 0.0
    assert update.beta == pytest.approx(0.3)
    assert update.learning_rate == pytest.approx(1e-2 / 4)


def test_steps_on_a_batch_bring_its_loss_down(make_updater: MakeUpdater) -> None:
    updater = make_updater()
    losses = [updater.update(batch(1, size=2, draws=4), step).loss for step in range(1, 9)]
    assert losses[-1] < 0.5 * losses[0]


def test_equal_rewards_leave_the_start_policy_exactly_as_it_is(make_updater: MakeUpdater) -> None:
    updater = make_updater()
    before = weights(updater)
    update = updater.update([group(*(draw(i, [40 + i, EOS], reward=0.3) for i in range(5)))], 1)
    assert (update.loss, update.grad_norm) == (0.0, 0.0)
    assert same(weights(updater), before)


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), 1e30])
def test_a_step_that_is_not_finite_is_skipped_and_leaves_no_trace(make_updater: MakeUpdater, reward: float) -> None:
    updater, untouched = make_updater(), make_updater()
    poisoned = [group(draw(1, [40, EOS], reward=reward), draw(2, [41, EOS]))]
    before = weights(updater)
    update = updater.update(poisoned, 1)
    assert update.skipped
    assert update.loss == 0.0
    assert same(weights(updater), before)
    assert not updater.optimizer.state
    for each in (updater, untouched):
        assert not each.update(batch(1), 2).skipped
    assert same(weights(updater), weights(untouched))


def test_a_large_gradient_is_clipped_to_the_norm_and_a_small_one_is_left(make_updater: MakeUpdater) -> None:
    updater = make_updater()
    large = updater.update([group(draw(1, [40, EOS], reward=1.0), draw(2, [41, EOS]), beta=0.01)], 1)
    assert large.grad_norm > 100 * MAX_GRAD_NORM
    assert gradients(updater).norm().item() == pytest.approx(MAX_GRAD_NORM, rel=1e-4)
    updater = make_updater()
    small = updater.update([group(draw(1, [40, EOS], reward=1e-3), draw(2, [41, EOS]), beta=1.0)], 1)
    assert 0 < small.grad_norm < MAX_GRAD_NORM
    assert gradients(updater).norm().item() == pytest.approx(small.grad_norm, rel=1e-4)


def test_without_a_gradient_no_weight_decays(make_updater: MakeUpdater) -> None:
    updater = make_updater()
    assert {settings["weight_decay"] for settings in updater.optimizer.param_groups} == {0.0}


@pytest.mark.parametrize(("token_budget", "passes"), [(4096, 2), (1, 8 * 3)])
def test_every_pass_over_a_micro_batch_is_a_sign_of_life_and_the_reference_takes_one(
    make_updater: MakeUpdater, token_budget: int, passes: int
) -> None:
    beats: list[None] = []
    updater = make_updater(token_budget=token_budget, progress=lambda: beats.append(None))
    updater.update(batch(1, size=2, draws=4), 1)
    assert len(beats) == passes  # reference and policy; for a group that is cut, its log Z before


def shares_log_z(*rewards: Sequence[float]) -> list[Group]:
    """Groups of a task whose baseline is the batch, at beta 0.1."""
    target = Target(beta=0.1, baseline="batch")
    return [
        group(*(draw(10 * i + j, [40 + j, EOS], reward=r) for j, r in enumerate(mine)), index=i, target=target)
        for i, mine in enumerate(rewards)
    ]


@pytest.mark.parametrize("token_budget", [4096, 1])
def test_a_task_may_share_one_log_z_over_its_whole_part_of_a_batch(
    make_updater: MakeUpdater, token_budget: int
) -> None:
    # Every prompt alone has equal rewards, and so says nothing; together they are 10, 10, 0, 0.
    update = make_updater(token_budget=token_budget).update(shares_log_z([1.0, 1.0], [0.0, 0.0]), 1)
    assert update.loss == pytest.approx(25)
    assert update.log_z == pytest.approx(5)


def test_two_tasks_never_share_a_log_z(make_updater: MakeUpdater) -> None:
    first, second = shares_log_z([1.0, 1.0], [0.0, 0.0])
    assert make_updater().update([first, second.model_copy(update={"task_id": 2})], 1).loss == 0


def without_reference(updater: Updater) -> Updater:
    updater.policy = replace(updater.policy, reference=None)
    return updater


def with_ref_logprobs(updater: Updater, groups: Sequence[Group]) -> list[Group]:
    """The groups as they come where a scorer computed what the updater's own reference says."""

    def known(one: Draw) -> Draw:
        rows = pad_rows([(PROMPT, one.token_ids.tolist())], temperature=[1.0], pad_token_id=0)
        return one.model_copy(update={"ref_logprob": float(updater.policy.ref_logprob(rows))})

    return [g.model_copy(update={"draws": tuple(map(known, g.draws))}) for g in groups]


@pytest.mark.parametrize("token_budget", [4096, 20])
def test_a_reference_scorer_stands_in_for_the_reference(make_updater: MakeUpdater, token_budget: int) -> None:
    mine, groups = make_updater(token_budget=token_budget), batch(3)
    scored = without_reference(make_updater(token_budget=token_budget))
    for step in (1, 2):
        expected = mine.update(groups, step)
        got = scored.update(with_ref_logprobs(mine, groups), step)
        assert got.loss == pytest.approx(expected.loss, rel=1e-3)
        assert got.log_ratio == pytest.approx(expected.log_ratio, abs=1e-4)


def test_what_no_reference_scorer_saw_is_not_trained_and_the_rest_is(make_updater: MakeUpdater) -> None:
    updater = without_reference(make_updater())
    before = weights(updater)
    update = updater.update([group(draw(1, [40, EOS], reward=1.0), draw(2, [41, EOS]))], 1)
    assert (update.trajectories, update.skipped) == (0, False)
    assert same(weights(updater), before)
    scored = group(draw(3, [40, EOS], reward=1.0, ref_logprob=-2.0), draw(4, [41, EOS], ref_logprob=-2.0), index=1)
    assert updater.update([group(draw(1, [40, EOS])), scored], 2).trajectories == 2
    assert not same(weights(updater), before)


class AllOfTwo(Ranks):
    """A rank of two that has all the work, and nobody to talk to."""

    def send(self, step: int, groups: Sequence[Group]) -> None:
        return

    def share(self, work: Sequence[T]) -> Sequence[T]:
        return work

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        list(tensors)


@pytest.mark.parametrize("ranks", [ALONE, AllOfTwo(count=2)], ids=["alone", "of two"])
def test_a_batch_of_which_nothing_is_trained_moves_nothing_though_there_is_momentum(
    make_updater: MakeUpdater, ranks: Ranks
) -> None:
    updater = without_reference(make_updater(ranks=ranks))
    updater.update([group(*(draw(i, [40 + i, EOS], reward=i, ref_logprob=-2.0) for i in range(2)))], 1)
    before = weights(updater)
    updater.update([group(draw(1, [40, EOS], reward=1.0), draw(2, [41, EOS]))], 2)
    assert same(weights(updater), before)


def test_every_rho_steps_the_policy_becomes_its_own_reference(make_updater: MakeUpdater) -> None:
    updater = make_updater(reset_reference_every=2)
    log_ratios = [updater.update(batch(1), step).log_ratio for step in range(1, 6)]
    assert [value == 0 for value in log_ratios] == [True, False, True, False, True]
