"""A task is checked where it enters; each refusal says what was expected and what came."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tba_common.tasks import MAX_TEXT_CHARACTERS, Exploration, PromptSpec, Task, is_scorer_name, stored_task

VERIFIER = {"scorer": "verifier"}


def task(**changes: Any) -> Task:
    return Task.model_validate({"name": "addition", "reward": [VERIFIER]} | changes)


def first_error(error: ValidationError) -> tuple[str, str]:
    first = error.errors()[0]
    return ".".join(map(str, first["loc"])), first["msg"]


def test_a_task_needs_only_a_name_and_a_reward() -> None:
    assert task().sampling.temperature == 1.0


@pytest.mark.parametrize(
    ("changes", "where", "what"),
    [
        ({"name": "Addition!"}, "name", "String should match pattern"),
        ({"name": "a" * 64}, "name", "String should match pattern"),
        ({"family": "cooking"}, "family", "Input should be 'math', 'preference' or 'redteam'"),
        ({"reward": []}, "reward", "at least 1 item"),
        ({"reward": [VERIFIER, VERIFIER]}, "reward", "each scorer expected once in a reward, got"),
        ({"reward": [VERIFIER | {"weight": 1e9}]}, "reward.0.weight", "less than or equal to 1000"),
        ({"reward": [VERIFIER | {"weight": float("nan")}]}, "reward.0.weight", "finite number"),
        ({"sampling": {"temperature": 0}}, "sampling", "temperature expected above 0 to train, got 0"),
        (
            {"evaluation": {"completions": 4}},
            "evaluation",
            "completions expected 1 at temperature 0, where all are alike",
        ),
        ({"sampling": {"completions": 0}}, "sampling.completions", "greater than or equal to 1"),
        ({"sampling": {"max_new_tokens": 40_000}}, "sampling.max_new_tokens", "less than or equal to 32768"),
        ({"target": {"beta": 0}}, "target.beta", "greater than 0"),
        ({"eval_fraction": 0.95}, "eval_fraction", "less than or equal to 0.9"),
        ({"colour": "red"}, "colour", "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(changes: dict[str, Any], where: str, what: str) -> None:
    with pytest.raises(ValidationError) as caught:
        task(**changes)
    place, sentence = first_error(caught.value)
    assert place == where
    assert what in sentence


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"temperature_low": 1.2, "temperature_high": 0.8}, "temperature_low 1.2 > temperature_high 0.8"),
        ({"top_p_low": 1.0, "top_p_high": 0.5}, "top_p_low 1.0 > top_p_high 0.5"),
        ({"probability": 1.5}, "less than or equal to 1"),
    ],
)
def test_a_range_of_exploration_that_is_upside_down_is_refused(fields: dict[str, float], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Exploration.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"text": ""}, "text"),
        ({"text": "x" * (MAX_TEXT_CHARACTERS + 1)}, "text"),
        ({"text": "x", "key": ""}, "key"),
        ({"text": "x", "split": "test"}, "split"),
        ({"text": 7}, "text"),
        ({}, "text"),
    ],
)
def test_a_wrong_prompt_is_refused_by_field(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PromptSpec.model_validate(fields)
    assert first_error(caught.value)[0] == where


def test_a_reader_passes_on_a_scorer_that_is_newer_than_itself() -> None:
    assert task(reward=[{"scorer": "oracle"}]).reward[0].scorer == "oracle"


@pytest.mark.parametrize("name", ["verifier", "reward_model.gold", "toxicity.guard-3"])
def test_a_scorer_is_a_kind_or_an_instance_of_one(name: str) -> None:
    assert is_scorer_name(name)


@pytest.mark.parametrize("name", ["", "oracle", "verifier.", "verifier.a.b", "verifier.Gold", "verifier.-a"])
def test_nothing_else_is_a_scorer(name: str) -> None:
    assert not is_scorer_name(name)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"template": "Solve it."}, r"expected \{text\} once, got it 0 times"),
        ({"template": "{text} {text}"}, r"expected \{text\} once, got it 2 times"),
        ({"system": "Be brief."}, "system: expected only with prompt_format chat, got prompt_format text"),
        ({"reward": [{"scorer": "verifier", "at_least": 1}]}, "expected only with rule gate, got sum"),
        ({"combination": {"rule": "gate"}}, "rule gate: expected at_least on some terms and not on all"),
        (
            {"evaluation": {"reward": [{"scorer": "verifier"}, {"scorer": "verifier"}]}},
            "each scorer expected once in a reward",
        ),
    ],
)
def test_what_cannot_go_together_in_a_task_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Task.model_validate({"name": "sums", "reward": [{"scorer": "verifier"}]} | changes)


def test_a_stored_task_may_have_fields_of_a_newer_program_and_a_posted_one_may_not() -> None:
    ours = task(target={"gamma": {"start": 0.5}})
    spec = ours.model_dump(mode="json")
    spec["target"]["gamma"]["added_tomorrow"] = spec["reward"][0]["added_tomorrow"] = spec["added_tomorrow"] = 1
    assert stored_task(spec) == ours
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Task.model_validate(spec)


def test_a_stored_task_still_has_to_be_one() -> None:
    with pytest.raises(ValidationError, match="reward"):
        stored_task({"name": "addition"})
