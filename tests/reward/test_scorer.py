"""Scorers are opened by kind; what a term may ask of them is checked once more where it is used."""

from __future__ import annotations

import pytest

from services.reward.scorer import open_scorer, options_as
from tba_common.codec import BadMessage
from tba_common.scorer_options import VerifierOptions


@pytest.mark.integration
def test_an_instance_is_opened_by_its_kind_and_keeps_its_name() -> None:
    with open_scorer("verifier.strict") as scorer:
        assert scorer.name == "verifier.strict"


def test_a_kind_that_does_not_exist_cannot_be_opened() -> None:
    with pytest.raises(ValueError, match=r"scorer 'oracle.x': expected a kind among verifier, .*, got 'oracle'"):
        open_scorer("oracle.x").__enter__()


def test_options_come_typed() -> None:
    assert options_as(VerifierOptions, {"match": "math"}) == VerifierOptions(match="math")


def test_options_that_mean_nothing_are_refused_by_name() -> None:
    with pytest.raises(BadMessage, match=r"^options: match: Input should be 'exact', .*; casefold: Extra inputs"):
        options_as(VerifierOptions, {"match": "fuzzy", "casefold": True})
