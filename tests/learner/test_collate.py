"""Groups as tensors: nothing of a token is lost, the masks say who wrote it, and cuts change only memory."""

from __future__ import annotations

from collections import Counter
from typing import Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.learner.collate import MicroBatch, Rows, pad_rows, split_batch
from services.learner.objective import estimate_log_z, trajectory_balance
from tba_common.messages import Group
from tba_common.tasks import Target
from tests.learner.groups import EOS, PAD, PROMPT, batch, draw, group

LARGE: Final = 1 << 20


def split(groups: list[Group], token_budget: int = LARGE, pad_token_id: int = PAD) -> list[tuple[MicroBatch, ...]]:
    return split_batch(groups, pad_token_id=pad_token_id, token_budget=token_budget)


def only(groups: list[Group], pad_token_id: int = PAD) -> MicroBatch:
    ((part,),) = split(groups, pad_token_id=pad_token_id)
    return part


def written(rows: Rows) -> list[list[int]]:
    """The tokens that the completion mask lets through, row by row."""
    return [ids[mask].tolist() for ids, mask in zip(rows.input_ids, rows.completion_mask, strict=True)]


@pytest.mark.parametrize("pad_token_id", [PAD, EOS])
def test_eos_counts_exactly_once_also_where_it_is_the_padding(pad_token_id: int) -> None:
    short, long = [40, EOS], [41, 42, 43, 44, EOS]
    part = only([group(draw(1, long), draw(2, short))], pad_token_id)
    assert written(part.rows) == [short, long]
    assert part.rows.input_ids[0, len(PROMPT) + 2 :].tolist() == [pad_token_id] * 3


def test_a_completion_that_was_cut_off_has_no_eos_added() -> None:
    assert written(only([group(draw(1, [40, 41]))]).rows) == [[40, 41]]


def test_token_ids_come_through_as_they_are() -> None:
    odd = [PAD, EOS, 40, EOS, PAD, EOS]
    part = only([group(draw(1, odd), draw(2, [40]), prompt_token_ids=[PAD, 19, PAD])])
    assert part.rows.input_ids[1].tolist() == [PAD, 19, PAD, *odd]
    assert part.rows.attention_mask[1].tolist() == [1] * 9
    assert written(part.rows)[1] == odd


def test_the_masks_tell_prompt_completion_and_padding_apart() -> None:
    rows = pad_rows([([3, 4], [5]), ([6], [7, 8, 9])], temperature=[1.0, 0.5], pad_token_id=PAD)
    assert rows.input_ids.tolist() == [[3, 4, 5, PAD], [6, 7, 8, 9]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert rows.completion_mask.tolist() == [[False, False, True, False], [False, True, True, True]]
    assert rows.temperature.tolist() == [1.0, 0.5]


def test_a_trajectory_drawn_three_times_is_three_draws_of_one_row() -> None:
    repeated = draw(7, [40, EOS], reward=1.0)
    part = only([group(repeated, draw(8, [41, 42, EOS]), repeated, repeated)])
    assert part.rows.input_ids.shape[0] == 2
    assert Counter(part.row.tolist()) == {0: 3, 1: 1}
    assert part.reward.tolist() == [1.0, 1.0, 1.0, 0.0]


def test_equal_texts_of_two_trajectories_are_two_rows() -> None:
    assert only([group(draw(1, [40, EOS]), draw(2, [40, EOS]))]).rows.input_ids.shape[0] == 2


def test_each_group_brings_its_own_beta_temperature_and_prompt() -> None:
    annealed = Target(beta=0.1, beta_start=0.3, anneal_steps=4)
    groups = [
        group(draw(1, [40, EOS]), index=0, prompt_token_ids=[20], temperature=0.5),
        group(draw(2, [41, EOS]), index=1, prompt_token_ids=[21, 22], target=annealed, task_step=2),
    ]
    part = only(groups)
    assert part.rows.temperature.tolist() == [0.5, 1.0]
    assert part.beta.tolist() == pytest.approx([0.1, 0.2])
    assert part.group.tolist() == [0, 1]
    assert part.rows.completion_mask.tolist() == [[False, True, True, False], [False, False, True, True]]


def test_groups_of_like_length_share_a_micro_batch_and_so_waste_no_padding() -> None:
    lengths = [2, 30, 3, 29]
    groups = [group(draw(i, [40] * length), index=i) for i, length in enumerate(lengths)]
    units = split(groups, token_budget=70)
    assert [part.rows.input_ids.shape for (part,) in units] == [(2, 7), (2, 34)]


def test_only_a_group_larger_than_the_budget_is_cut() -> None:
    large = group(*(draw(i, [40] * 4) for i in range(5)), index=0)
    small = group(draw(9, [41]), index=1)
    units = split([large, small], token_budget=16)
    assert [[part.rows.input_ids.shape[0] for part in unit] for unit in units] == [[1], [2, 2, 1]]


def test_a_row_longer_than_the_budget_still_makes_a_micro_batch() -> None:
    ((part,),) = split([group(draw(1, [40] * 30))], token_budget=8)
    assert part.rows.input_ids.shape == (1, 34)


def fake_logprob(rows: Rows) -> Tensor:
    """A stand-in for a model: any function of the tokens that were written."""
    return -(rows.input_ids * rows.completion_mask).sum(dim=1) / 20


def loss_and_log_z(groups: list[Group], token_budget: int) -> tuple[float, float]:
    """The batch's mean loss and log Z, put together from its micro-batches as the learner does."""
    total, log_z_total, draws = 0.0, 0.0, sum(len(g.draws) for g in groups)
    for unit in split(groups, token_budget):
        whole = {name: torch.cat([getattr(part, name) for part in unit]) for name in ("reward", "beta", "group")}
        log_ratio = torch.cat([fake_logprob(part.rows)[part.row] for part in unit])
        log_z = estimate_log_z(log_ratio, **whole)[:1] if len(unit) > 1 else None
        for part in unit:
            logprob = fake_logprob(part.rows)[part.row]
            fixed = {"reward": part.reward, "beta": part.beta, "group": part.group}
            result = trajectory_balance(logprob, torch.zeros_like(logprob), **fixed, log_z=log_z)
            total += float(result.loss) * len(logprob) / draws
            log_z_total += float(result.log_z.sum()) / draws
    return total, log_z_total


@settings(max_examples=40)
@given(token_budget=st.integers(1, 200), seed=st.integers(1, 50), size=st.integers(1, 5), draws=st.integers(1, 6))
def test_how_a_batch_is_cut_never_changes_the_result(token_budget: int, seed: int, size: int, draws: int) -> None:
    groups = batch(seed, size=size, draws=draws)
    assert loss_and_log_z(groups, token_budget) == pytest.approx(loss_and_log_z(groups, LARGE), rel=1e-5)


@settings(max_examples=40)
@given(token_budget=st.integers(1, 200), seed=st.integers(1, 50), size=st.integers(1, 5), draws=st.integers(1, 6))
def test_every_draw_is_in_one_micro_batch_and_none_is_over_the_budget(
    token_budget: int, seed: int, size: int, draws: int
) -> None:
    groups = batch(seed, size=size, draws=draws)
    parts = [part for unit in split(groups, token_budget) for part in unit]
    found = Counter(
        (tuple(written(part.rows)[row]), reward)
        for part in parts
        for row, reward in zip(part.row.tolist(), part.reward.tolist(), strict=True)
    )
    assert found == Counter((tuple(d.token_ids.tolist()), d.reward) for g in groups for d in g.draws)
    assert all(len(part.rows.input_ids) == 1 or part.rows.input_ids.numel() <= token_budget for part in parts)
