"""The verifier on rollouts, with its real processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from reasoning_gym import create_dataset

from services.reward.scorer import ScoringFailed
from services.reward.verifier import Verifier, open_verifier
from services.reward.verifier_settings import VerifierSettings
from tba_common.codec import BadMessage
from tests.reward.rollouts import prompt, rollout

pytestmark = pytest.mark.integration

#: math-verify works out the power, digit by digit.
NEVER_ENDING = "$9^{9^9}$"


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with open_verifier("verifier", VerifierSettings(time_limit_seconds=30.0)) as verifier:
        yield verifier


@pytest.fixture(scope="module")
def impatient() -> Iterator[Verifier]:
    """One whose limit is reached in a test, and not by what a busy machine makes anybody wait."""
    with open_verifier("verifier", VerifierSettings(time_limit_seconds=4.0)) as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 0, 0, 0]),
        ({"match": "exact"}, [1, 0, 0, 0]),
        ({"match": "last_number"}, [1, 1, 0, 0]),
        ({"match": "math"}, [1, 1, 1, 0]),
    ],
)
def test_each_match_gives_one_for_right_and_zero_for_wrong(
    verifier: Verifier, options: dict[str, Any], expected: list[float]
) -> None:
    scores = verifier.score(rollout("19", "It is 19.", "$\\frac{38}{2}$", "20"), options).values
    assert scores.tolist() == expected
    assert scores.dtype == "float32"


def test_a_completion_that_hangs_is_named_and_never_scored_zero(impatient: Verifier) -> None:
    hanging = rollout("19", "20", NEVER_ENDING, "18")
    with pytest.raises(ScoringFailed, match=r"^verifier exceeded 4 s on completion 3 of 4$"):
        impatient.score(hanging, {"match": "math"})
    assert impatient.score(rollout("19"), {"match": "math"}).values.tolist() == [1]


def test_a_prompt_without_reference_is_refused(verifier: Verifier) -> None:
    with pytest.raises(BadMessage, match="match exact: expected a prompt with a reference, got none"):
        verifier.score(rollout("19", of=prompt(reference=None)), {})


def test_a_reference_that_cannot_be_read_is_refused(verifier: Verifier) -> None:
    with pytest.raises(BadMessage, match="expected a number for match last_number, got none"):
        verifier.score(rollout("19", of=prompt(reference="nineteen")), {"match": "last_number"})


def test_a_pattern_that_backtracks_for_ever_hits_the_limit(impatient: Verifier) -> None:
    options = {"match": "regex", "pattern": "^(a+)+$"}
    with pytest.raises(ScoringFailed, match=r"^verifier exceeded 4 s on completion 2 of 2$"):
        impatient.score(rollout("aaa", "a" * 64 + "!"), options)
    assert impatient.score(rollout("aaa", "b"), options).values.tolist() == [1, 0]


SCHEMA = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
PRODUCT = {"reasoning_gym": {"task": "products", "seed": 5, "index": 3}}


def test_rules_without_a_reference_ask_for_none(verifier: Verifier) -> None:
    order = prompt(reference=None)
    answers = rollout('{"sum": 19}', '{"sum": "19"}', of=order)
    assert verifier.score(answers, {"match": "json_schema", "json_schema": SCHEMA}).values.tolist() == [1, 0]
    assert verifier.score(answers, {"match": "regex", "pattern": r": \d+\}$"}).values.tolist() == [1, 0]


def test_reasoning_gym_scores_its_own_problems(verifier: Verifier) -> None:
    entry = create_dataset("products", seed=5, size=4)[3]
    answers = rollout(entry["answer"], "so <answer>" + entry["answer"] + "</answer>", "x", of=prompt(metadata=PRODUCT))
    assert verifier.score(answers, {"match": "reasoning_gym"}).values.tolist() == [1, 1, 0]


def test_options_that_mean_nothing_are_refused(verifier: Verifier) -> None:
    with pytest.raises(BadMessage, match="options: match: Input should be 'exact'"):
        verifier.score(rollout("19"), {"match": "fuzzy"})


def test_its_version_names_the_rules_and_the_library(verifier: Verifier) -> None:
    assert verifier.version.startswith("1/math-verify-0.")
