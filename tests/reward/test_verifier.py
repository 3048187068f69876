"""The verifier on rollouts, with its real processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from services.reward.scorer import ScoringFailed, open_scorer
from services.reward.settings import RewardSettings
from services.reward.verifier import Verifier, match_of, open_verifier
from tba_common.codec import BadMessage
from tests.reward.rollouts import prompt, rollout

#: math-verify works out the power, digit by digit.
NEVER_ENDING = "$9^{9^9}$"


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with open_verifier(RewardSettings(time_limit_seconds=1.0)) as verifier:
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
    scores = verifier.score(rollout("19", "It is 19.", "$\\frac{38}{2}$", "20"), options)
    assert scores.tolist() == expected
    assert scores.dtype == "float32"


def test_a_completion_that_hangs_is_named_and_never_scored_zero(verifier: Verifier) -> None:
    hanging = rollout("19", "20", NEVER_ENDING, "18")
    with pytest.raises(ScoringFailed, match=r"^verifier exceeded 1 s on completion 3 of 4$"):
        verifier.score(hanging, {"match": "math"})
    assert verifier.score(rollout("19"), {"match": "math"}).tolist() == [1]


def test_a_prompt_without_reference_is_refused(verifier: Verifier) -> None:
    with pytest.raises(BadMessage, match="match exact: expected a prompt with a reference, got none"):
        verifier.score(rollout("19", of=prompt(reference=None)), {})


def test_a_reference_that_cannot_be_read_is_refused(verifier: Verifier) -> None:
    with pytest.raises(BadMessage, match="expected a number for match last_number, got none"):
        verifier.score(rollout("19", of=prompt(reference="nineteen")), {"match": "last_number"})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"match": "fuzzy"}, "expected one of exact, last_number, math, got 'fuzzy'"),
        ({"match": ["exact"]}, r"expected one of exact, last_number, math, got \['exact'\]"),
        ({"match": "exact", "casefold": True}, "expected only match, got casefold"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadMessage, match=reason):
        match_of(options)


def test_its_version_names_the_rules_and_the_library(verifier: Verifier) -> None:
    assert verifier.version.startswith("1/math-verify-0.")


def test_a_scorer_that_does_not_exist_cannot_be_opened() -> None:
    with pytest.raises(ValueError, match="unknown scorer 'oracle'"), open_scorer("oracle", RewardSettings()):
        pass
