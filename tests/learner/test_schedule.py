"""The schedules, against the values that the paper's runs had."""

from __future__ import annotations

import math

import pytest

from services.learner.schedule import LearningRateSchedule, Strengths, beta_at, strengths_at
from tba_common.tasks import Ramp, Target


@pytest.mark.parametrize(
    ("step", "beta"), [(1, 0.0140), (250, 0.00902), (499, 0.00404), (500, 0.004), (501, 0.004), (700, 0.004)]
)
def test_beta_of_the_gsm8k_run(step: int, beta: float) -> None:
    target = Target(beta=0.004, beta_start=0.014, anneal_steps=500)
    assert beta_at(target, step - 1) == pytest.approx(beta, rel=1e-3)


@pytest.mark.parametrize(("step", "beta"), [(1, 1.0), (31, 0.7773), (65, 0.525), (128, 0.05)])
def test_beta_of_the_summarisation_run_before_its_jump(step: int, beta: float) -> None:
    target = Target(beta=0.05, beta_start=1.0, anneal_steps=128)
    assert beta_at(target, step - 1) == pytest.approx(beta, rel=1e-4)


def test_beta_is_exactly_its_end_value_from_the_last_annealing_step_on() -> None:
    target = Target(beta=0.004, beta_start=0.014, anneal_steps=500)
    assert {beta_at(target, task_step) for task_step in (499, 500, 10_000)} == {0.004}


@pytest.mark.parametrize(
    "target", [Target(beta=0.05), Target(beta=0.05, beta_start=1.0), Target(beta=0.05, anneal_steps=9)]
)
def test_beta_is_constant_without_a_start_or_without_steps(target: Target) -> None:
    assert {beta_at(target, task_step) for task_step in range(20)} == {0.05}


@pytest.mark.parametrize(
    ("step", "multiplier"),
    [(1, 0.02), (25, 0.5), (50, 1.0), (51, 1.0), (400, 1.0), (700, 0.5), (1000, 0.0), (1200, 0.0)],
)
def test_learning_rate_of_the_gsm8k_run(step: int, multiplier: float) -> None:
    assert LearningRateSchedule.parse("50/350/600").multiplier(step) == pytest.approx(multiplier, abs=1e-12)


def test_the_decay_is_half_a_cosine() -> None:
    quarter = LearningRateSchedule(warmup=0, stable=0, decay=100).multiplier(25)
    assert quarter == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_a_warm_up_alone_never_decays() -> None:
    schedule = LearningRateSchedule.parse("10")
    assert [schedule.multiplier(step) for step in (1, 5, 10, 11, 100_000)] == [0.1, 0.5, 1.0, 1.0, 1.0]


def test_no_warm_up_starts_at_the_peak() -> None:
    assert LearningRateSchedule.parse("0").multiplier(1) == 1.0


@pytest.mark.parametrize("text", ["", "50/350", "50/350/600/1", "fifty", "-1", "1.5", "50//600"])
def test_an_unreadable_schedule_says_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected 'warmup' or 'warmup/stable/decay'"):
        LearningRateSchedule.parse(text)


def test_the_target_of_the_paper_keeps_the_reference_whole() -> None:
    assert strengths_at(Target(beta=0.05), 7) == Strengths(beta=0.05, reference_weight=1.0)


def test_gamma_and_temperature_weaken_the_terms_as_red_teaming_does() -> None:
    # log R = (log pi_ref / gamma + r / beta) / T, halfway on both ramps: gamma 1.1, T 1.5.
    target = Target(
        beta=0.1, gamma=Ramp(start=1.0, end=1.2, steps=100), temperature=Ramp(start=2.0, end=1.0, steps=100)
    )
    halfway = strengths_at(target, 50)
    assert halfway.beta == pytest.approx(0.15)
    assert halfway.reference_weight == pytest.approx(1 / 1.65)
    assert strengths_at(target, 100) == Strengths(beta=0.1, reference_weight=1 / 1.2)
