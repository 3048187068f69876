"""Rewards are finite scores, combined as the task says, or nothing at all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.reward.rewards import check_score, combine
from tba_common.codec import BadMessage
from tba_common.messages import Completion, Score
from tba_common.tasks import Combination, ScorerTerm
from tests.reward.rollouts import completion, prompt, score, term

FINITE = st.floats(-1_000, 1_000, width=32)


def combined(
    terms: Sequence[ScorerTerm],
    scores: Sequence[Score],
    completions: int | list[Completion],
    combination: Combination | None = None,
) -> list[float]:
    """The rewards of so many completions of two tokens, or of those given."""
    given_completions = [completion("a")] * completions if isinstance(completions, int) else completions
    order = prompt(*terms, combination=combination or Combination())
    return [float(reward) for reward in combine(order, scores, given_completions)]


def test_a_reward_is_the_weighted_sum_of_the_scores() -> None:
    terms = [term("verifier", 2.0), term("toxicity", -0.5), term("judge", 10.0)]
    scores = [score(1, 0), score(0.25, 1, scorer="toxicity"), score(0.5, 0.75, scorer="judge")]
    assert combined(terms, scores, 2) == [2 - 0.125 + 5, -0.5 + 7.5]


def test_scores_count_by_scorer_and_not_by_order() -> None:
    terms = [term("verifier", 3.0), term("judge", 1.0)]
    scores = [score(1.0), score(0.5, scorer="judge")]
    assert combined(terms, scores, 1) == combined(terms, scores[::-1], 1) == [3.5]


def test_a_term_of_weight_zero_is_scored_and_moves_nothing() -> None:
    assert combined([term(), term("diversity", 0.0)], [score(1.0), score(0.7, scorer="diversity")], 1) == [1.0]


def test_two_instances_of_a_kind_are_two_terms() -> None:
    terms = [term("reward_model", 1.0), term("reward_model.gold", 0.5)]
    scores = [score(2.0, scorer="reward_model"), score(4.0, scorer="reward_model.gold")]
    assert combined(terms, scores, 1) == [4.0]


def test_a_log_product_is_the_logarithm_of_a_product_of_powers() -> None:
    terms = [term("toxicity", 2.0), term("diversity", 0.5), term("judge", -1.0)]
    scores = [score(0.5, 0.0, scorer="toxicity"), score(0.25, 1.0, scorer="diversity"), score(0.125, 1, scorer="judge")]
    rewards = combined(terms, scores, 2, Combination(rule="log_product", floor=1e-3))
    # 0.5^2 * 0.25^0.5 / 0.125 = 1 and 0.001^2 * 1 / 1
    assert rewards == pytest.approx([0.0, 2 * math.log(1e-3)], abs=1e-6)


GATE = [term("verifier", 5.0, at_least=1.0), term("toxicity", 1.0, at_least=0.7), term("judge", 2.0), term("code", 1.0)]


def test_a_gate_adds_the_other_terms_where_every_bar_is_reached() -> None:
    scores = [
        score(1, 1, 0),
        score(0.7, 0.6, 0.9, scorer="toxicity"),  # 0.7 in half the precision of 0.7 still reaches it
        score(0.5, 0.5, 0.5, scorer="judge"),
        score(0.25, 0.25, 0.25, scorer="code"),
    ]
    assert combined(GATE, scores, 3, Combination(rule="gate", closed_reward=-1.0)) == [1.25, -1.0, -1.0]


def test_a_completion_that_is_too_short_has_the_short_reward_whatever_its_scores_are() -> None:
    completions = [completion("a", tokens=n) for n in (2, 3, 4)]
    rule = Combination(min_tokens=3, short_reward=-7.0)
    assert combined([term()], [score(1, 1, 1)], completions, rule) == [-7, 1, 1]


def test_a_completion_that_was_cut_off_has_the_non_eos_reward_where_the_task_has_one() -> None:
    completions = [completion("a"), completion("a", finish_reason="length")]
    assert combined([term()], [score(1, 1)], completions, Combination(non_eos_reward=-1.0)) == [1, -1]
    assert combined([term()], [score(1, 1)], completions) == [1, 1]


def test_one_that_is_both_short_and_cut_off_counts_as_short() -> None:
    rule = Combination(min_tokens=9, short_reward=-7.0, non_eos_reward=-1.0)
    assert combined([term()], [score(1)], [completion("a", finish_reason="length")], rule) == [-7]


def test_a_given_text_without_tokens_is_never_too_short() -> None:
    assert combined([term()], [score(1)], [completion("a", tokens=0)], Combination(min_tokens=3)) == [1]


@given(st.lists(FINITE, min_size=1, max_size=32))
def test_one_term_of_weight_one_is_the_score_itself(values: list[float]) -> None:
    assert combined([term()], [score(*values)], len(values)) == values


@given(
    st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=8),
    FINITE,
    st.sampled_from(["sum", "log_product", "gate"]),
)
def test_a_completion_s_reward_does_not_depend_on_its_neighbours(
    values: list[tuple[float, float]], weight: float, rule: str
) -> None:
    terms = [term("verifier", 1.0, at_least=0.5 if rule == "gate" else None), term("judge", weight)]
    combination = Combination.model_validate({"rule": rule})

    def rewards(rows: list[tuple[float, float]]) -> list[float]:
        scores = [score(*(a for a, _ in rows)), score(*(b for _, b in rows), scorer="judge")]
        return combined(terms, scores, len(rows), combination)

    assert rewards(values) == [rewards([row])[0] for row in values]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused_with_its_place(bad: float) -> None:
    with pytest.raises(BadMessage, match=rf"judge score of completion 2 of 3: expected a finite number, got {bad}"):
        check_score(score(0.0, bad, 1.0, scorer="judge"), 3)


def test_a_detail_is_held_to_what_a_score_is_held_to() -> None:
    with pytest.raises(BadMessage, match="verifier margin of completion 1 of 2: expected a finite number, got nan"):
        check_score(score(0.0, 1.0, margin=[math.nan, 1.0]), 2)
    with pytest.raises(BadMessage, match="verifier margin: 1 values for 2 completions"):
        check_score(score(0.0, 1.0, margin=[1.0]), 2)


@pytest.mark.parametrize("rule", ["sum", "gate"])
def test_a_reward_that_overflows_is_refused(rule: str) -> None:
    terms = [term("judge", at_least=0.0 if rule == "gate" else None), term(weight=1_000.0)]
    with pytest.raises(BadMessage, match="reward of completion 1 of 1: expected a finite number, got inf"):
        combined(terms, [score(1, scorer="judge"), score(3e38)], 1, Combination.model_validate({"rule": rule}))


def test_a_score_for_fewer_completions_is_refused() -> None:
    with pytest.raises(BadMessage, match="verifier score: 2 values for 3 completions"):
        combined([term()], [score(1, 0)], 3)


@pytest.mark.parametrize(
    ("scores", "got"),
    [
        ([], "none"),
        ([score(1.0)], "verifier"),
        ([score(1.0), score(1.0), score(1.0, scorer="judge")], "judge, verifier, verifier"),
    ],
)
def test_a_missing_or_second_score_is_refused(scores: list[Score], got: str) -> None:
    with pytest.raises(BadMessage, match=f"expected the scores of judge, verifier, got {got}$"):
        combined([term("verifier"), term("judge")], scores, 1)
