"""Every completion of an order ends in exactly one way, whatever comes back."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.buffer.arrivals import Order, Outcome, Plan, bury, fingerprint, judge, scores_of
from services.buffer.store import settlement_of
from services.buffer.trajectory_rows import Stored
from tba_common.messages import Prompt, Score, Trajectories
from tba_common.topics import TRAJECTORIES
from tests.buffer.world import prompt, record, trajectories

ORDER = Order(1, 1, 1, "train", None, 4, in_flight=True, prompt_token_ids=None)
EVALUATION = replace(ORDER, purpose="eval", policy_version=3, completions=1)


def judged(*arrivals: Trajectories, orders: Sequence[Order] = (ORDER,), oldest: int = 0) -> Plan:
    records = [(record(arrival, TRAJECTORIES.name), arrival) for arrival in arrivals]
    return judge(records, {order.issue_id: order for order in orders}, oldest_version=oldest)


def ended(plan: Plan, issue_id: int = 1) -> tuple[int, int, int, int]:
    outcome = plan.outcomes[issue_id]
    return len(outcome.kept), outcome.dead_lettered, outcome.expired, outcome.evaluated


def with_scores(arrival: Trajectories, values: list[float], seconds: float = 0.1) -> Trajectories:
    score = arrival.rollout.scores[0].model_copy(
        update={"values": np.array(values, dtype=np.float32), "seconds": seconds}
    )
    return arrival.model_copy(update={"rollout": arrival.rollout.model_copy(update={"scores": (score,)})})


def test_a_good_answer_is_kept_whole() -> None:
    plan = judged(trajectories(prompt()))
    assert ended(plan) == (4, 0, 0, 0)
    assert (plan.rejected, plan.redelivered, len(plan.rows)) == ([], 0, 4)


def test_the_fingerprint_is_blake2b_of_little_endian_tokens() -> None:
    tokens = np.array([1, 2, 70_000], dtype=np.int32)
    assert fingerprint(tokens).bytes == blake2b(tokens.astype("<i4").tobytes(), digest_size=16).digest()
    assert fingerprint(tokens) != fingerprint(tokens[:2])


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_one_reward_that_is_no_number_dead_letters_its_completion_only(reward: float) -> None:
    plan = judged(trajectories(prompt(), rewards=[1.0, reward, 0.0, 1.0]))
    assert ended(plan) == (3, 1, 0, 0)
    assert "completion 1" in plan.rejected[0][1]


@pytest.mark.parametrize(
    ("arrival", "reason"),
    [
        (trajectories(prompt(), tokens=[[1], [2]]), "2 of 4 completions"),
        (trajectories(prompt(prompt_id=9)), "got train of prompt 9"),
        (trajectories(prompt(purpose="eval")), "got eval of prompt 1"),
        (with_scores(trajectories(prompt()), [1.0]), "expected 4 scores"),
        (with_scores(trajectories(prompt()), [0, 1, 0, 1], seconds=math.nan), "expected 4 scores"),
    ],
)
def test_an_answer_that_does_not_fit_its_order_is_dead_lettered_whole(arrival: Trajectories, reason: str) -> None:
    plan = judged(arrival)
    assert ended(plan) == (0, 4, 0, 0)
    assert reason in plan.rejected[0][1]


def test_an_empty_completion_is_dead_lettered() -> None:
    assert ended(judged(trajectories(prompt(), tokens=[[], [1], [2], [3]]))) == (3, 1, 0, 0)


def test_a_score_that_is_no_number_is_dead_lettered_even_under_a_finite_reward() -> None:
    assert ended(judged(with_scores(trajectories(prompt()), [0, 1, math.nan, 1]))) == (3, 1, 0, 0)


def test_an_answer_to_an_unknown_order_is_rejected_and_settles_nothing() -> None:
    plan = judged(trajectories(prompt(issue_id=77)))
    assert plan.outcomes == {}
    assert plan.rejected[0][1] == "unknown issue 77"


def test_other_prompt_tokens_than_those_stored_are_rejected() -> None:
    known = replace(ORDER, prompt_token_ids=np.array([1, 1], dtype="<i4").tobytes())
    assert ended(judged(trajectories(prompt(), prompt_tokens=[1, 1]), orders=[known])) == (4, 0, 0, 0)
    plan = judged(trajectories(prompt(), prompt_tokens=[1, 2]), orders=[known])
    assert ended(plan) == (0, 4, 0, 0)
    assert "tokens differ" in plan.rejected[0][1]


def test_two_first_answers_to_a_prompt_in_one_poll_must_agree_on_its_tokens() -> None:
    orders = [ORDER, replace(ORDER, issue_id=2)]
    plan = judged(
        trajectories(prompt(), prompt_tokens=[1, 1]),
        trajectories(prompt(issue_id=2), prompt_tokens=[1, 2]),
        orders=orders,
    )
    assert (ended(plan, 1), ended(plan, 2)) == ((4, 0, 0, 0), (0, 4, 0, 0))
    assert plan.prompt_token_ids == {1: np.array([1, 1], dtype="<i4").tobytes()}


def test_too_old_completions_expire_and_the_others_stay() -> None:
    assert ended(judged(trajectories(prompt(), version=[4, 5, 6, 9]), oldest=5)) == (3, 0, 1, 0)


def test_a_second_answer_is_redelivered_in_the_same_poll_and_later() -> None:
    plan = judged(trajectories(prompt()), trajectories(prompt(attempt=2), tokens=[[9], [8], [7], [6]]))
    assert (ended(plan), plan.redelivered, len(plan.rows)) == ((4, 0, 0, 0), 1, 4)
    settled = judged(trajectories(prompt()), orders=[replace(ORDER, in_flight=False)])
    assert (settled.outcomes, settled.redelivered, settled.rows) == ({}, 1, {})


def test_of_equal_tokens_the_newer_version_wins_and_ties_go_to_the_later() -> None:
    orders = [ORDER, replace(ORDER, issue_id=2)]
    same = [[5], [6], [7], [8]]
    plan = judged(
        trajectories(prompt(), tokens=same, version=[3, 3, 3, 3], rewards=[0, 0, 0, 0]),
        trajectories(prompt(issue_id=2), tokens=same, version=[2, 3, 4, 3], rewards=[1, 1, 1, 1]),
        orders=orders,
    )
    assert [(row.policy_version, row.reward) for row in plan.rows.values()] == [(3, 0), (3, 1), (4, 1), (3, 1)]
    assert set(plan.first_issue.values()) == {1}


def test_an_evaluation_is_never_kept_for_training() -> None:
    order = prompt(purpose="eval", policy_version=3, sampling={"completions": 1, "temperature": 0})
    plan = judged(trajectories(order, version=3), orders=[EVALUATION], oldest=100)
    assert (ended(plan), plan.rows, len(plan.evaluations)) == ((0, 0, 0, 1), {}, 1)


def test_an_evaluation_by_another_version_is_dead_lettered() -> None:
    order = prompt(purpose="eval", policy_version=3, sampling={"completions": 1, "temperature": 0})
    plan = judged(trajectories(order, version=4), orders=[EVALUATION])
    assert ended(plan) == (0, 1, 0, 0)
    assert "sampled with version 4" in plan.rejected[0][1]


def test_a_dead_letter_settles_an_open_order_once() -> None:
    plan = judged(trajectories(prompt()), orders=[ORDER])
    bury(plan, [1, 2, 2, 99], {1: ORDER, 2: replace(ORDER, issue_id=2)})
    assert (ended(plan, 1), ended(plan, 2)) == ((4, 0, 0, 0), (0, 4, 0, 0))
    assert len(plan.outcomes) == 2
    settled = Plan()
    bury(settled, [1], {1: replace(ORDER, in_flight=False)})
    assert settled.outcomes == {}


def test_text_with_nul_characters_can_be_stored() -> None:
    arrival = trajectories(prompt())
    first = arrival.rollout.completions[0].model_copy(update={"text": "a\x00b"})
    rollout = arrival.rollout.model_copy(update={"completions": (first, *arrival.rollout.completions[1:])})
    plan = judged(arrival.model_copy(update={"rollout": rollout}))
    assert next(iter(plan.rows.values())).text == "a\N{REPLACEMENT CHARACTER}b"


FATES = st.sampled_from(["good", "again", "old", "nan", "empty"])


@given(st.lists(st.lists(FATES, min_size=4, max_size=4), min_size=1, max_size=4), st.data())
def test_the_completions_of_every_order_add_up(groups: list[list[str]], data: st.DataObject) -> None:
    orders = [replace(ORDER, issue_id=i) for i in range(len(groups))]
    arrivals = [_arrival(prompt(issue_id=i), fates) for i, fates in enumerate(groups)]
    plan = judged(*arrivals, orders=orders, oldest=5)
    known = data.draw(st.sets(st.sampled_from(sorted(plan.rows)))) if plan.rows else set()
    stored = {key: Stored(n, is_new=key not in known) for n, key in enumerate(plan.rows)}
    settlements = [settlement_of(outcome, plan.first_issue, stored) for outcome in plan.outcomes.values()]
    for settlement in settlements:
        assert settlement.stored + settlement.duplicates + settlement.dead_lettered + settlement.expired == 4
    assert sum(s.stored for s in settlements) == sum(s.is_new for s in stored.values())


def _arrival(order: Prompt, fates: list[str]) -> Trajectories:
    tokens: dict[str, Any] = {"again": [7], "empty": []}
    return trajectories(
        order,
        tokens=[tokens.get(fate, [order.issue_id, i, 3]) for i, fate in enumerate(fates)],
        version=[0 if fate == "old" else 5 for fate in fates],
        rewards=[math.nan if fate == "nan" else 1.0 for fate in fates],
    )


def test_an_outcome_of_nothing_settles_as_nothing() -> None:
    assert settlement_of(Outcome(ORDER), {}, {}).stored == 0


def test_scores_are_json_whatever_a_scorer_is_called_and_details_are_finite_numbers() -> None:
    said = {
        "scorer": 'judge."quoted"',
        "version": "1\\2\n",
        "values": [0.1, -1e-30, 3.0, 1e20],
        "seconds": 0.25,
        "details": {"ratio": [0.5, math.nan, math.inf, -2.0]},
    }
    arrival = trajectories(prompt())
    plain = arrival.rollout.scores[0]
    rollout = arrival.rollout.model_copy(update={"scores": (Score.model_validate(said), plain)})
    parsed = [json.loads(text) for text in scores_of(rollout)]
    assert [one[0]["value"] for one in parsed] == np.array(said["values"], np.float32).tolist()
    assert [one[0]["details"] for one in parsed] == [{"ratio": 0.5}, {}, {}, {"ratio": -2.0}]
    assert {(one[0]["scorer"], one[0]["version"], one[0]["seconds"], one[0]["attempts"]) for one in parsed} == {
        (said["scorer"], said["version"], 0.25, 1)
    }
    assert [one[1]["value"] for one in parsed] == plain.values.tolist()
    assert scores_of(rollout.model_copy(update={"scores": ()})) == ["[]"] * 4
