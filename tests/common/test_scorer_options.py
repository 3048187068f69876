"""What a task may ask of a scorer is refused where it is posted, with the place and the reason."""

from __future__ import annotations

from typing import Any

import pytest

from tba_common.scorer_options import OPTIONS, ToxicityOptions, VerifierOptions, option_faults, read_options
from tba_common.tasks import SCORER_KINDS


def test_every_kind_of_scorer_has_its_options() -> None:
    assert tuple(OPTIONS) == SCORER_KINDS


def test_an_instance_has_the_options_of_its_kind() -> None:
    assert read_options("toxicity.guard", {"of": "responses"}) == ToxicityOptions(of="responses")


def test_no_options_are_the_defaults() -> None:
    assert read_options("verifier", {}) == VerifierOptions(match="exact")


@pytest.mark.parametrize(
    ("scorer", "options", "place", "reason"),
    [
        ("verifier", {"match": "fuzzy"}, "match", "Input should be 'exact'"),
        ("verifier", {"matches": "exact"}, "matches", "Extra inputs are not permitted"),
        ("verifier", {"match": "regex"}, "", "pattern: expected with match regex and only there, got match regex"),
        ("verifier", {"pattern": "a"}, "", "pattern: expected with match regex and only there, got match exact"),
        ("verifier", {"match": "regex", "pattern": "("}, "pattern", "expected a regular expression, got '('"),
        ("verifier", {"match": "regex", "pattern": "a{99999999999}"}, "pattern", "expected a regular expression"),
        ("code", {"source": f"x = {'-' * 60_000}1"}, "source", "expected Python source, got one that is nested too"),
        ("code", {"source": f"x = 1{'+1' * 30_000}"}, "source", "expected Python source, got one that is nested too"),
        ("code", {"source": "def score(:"}, "source", "expected Python source, got a syntax error in line 1"),
        ("code", {"source": "x = 1"}, "source", "expected a function `def score(prompt, completion, reference)`"),
        ("victim", {"temperature": 0}, "", "samples expected 1 at temperature 0"),
        ("toxicity", {"threshold": 1.5}, "threshold", "Input should be less than 1"),
        ("reference", {"temperature": 1}, "temperature", "Extra inputs are not permitted"),
        ("judge", {}, "rubric", "Field required"),
    ],
)
def test_a_wrong_option_is_named_with_what_was_expected(
    scorer: str, options: dict[str, Any], place: str, reason: str
) -> None:
    ((field, message, _),) = option_faults(scorer, options)
    assert field == place
    assert message.startswith(reason)


def test_right_options_have_no_fault() -> None:
    assert option_faults("code", {"source": "def score(prompt, completion, reference):\n    return 1.0"}) == []
