from __future__ import annotations

from typing import Any, get_args

import pytest

from services.buffer.api_scorers import option_faults, reference_faults
from services.reward.verifier_rules import Match
from tba_common.tasks import PromptSpec, ScorerTerm


def term(**options: Any) -> ScorerTerm:
    return ScorerTerm(scorer="verifier", options=options)


@pytest.mark.parametrize("match", get_args(Match))
def test_every_rule_of_the_verifier_may_be_asked_for(match: str) -> None:
    assert list(option_faults([term(match=match)])) == []


def test_options_that_the_verifier_does_not_know_are_named() -> None:
    faults = list(option_faults([term(match="fuzzy", strict=True)]))
    assert [(fault.field, fault.expected, fault.got) for fault in faults] == [
        ("/reward/0/options/match", "one of exact, last_number, math", '"fuzzy"'),
        ("/reward/0/options/strict", "no option but match", "true"),
    ]


@pytest.mark.parametrize(
    ("match", "reference", "fits"),
    [
        ("exact", "7", True),
        ("exact", None, False),
        ("exact", "  ", False),
        ("math", "\\frac{1}{2}", True),
        ("last_number", "so it is #### 42", True),
        ("last_number", "forty-two", False),
    ],
)
def test_a_prompt_needs_the_reference_that_its_rule_compares_with(
    match: str, reference: str | None, fits: bool
) -> None:
    prompt = PromptSpec(text="q", reference=reference)
    faults = list(reference_faults([term(match=match)], [prompt], "/prompts", 3))
    assert (faults == []) is fits
    assert all(fault.field == "/prompts/3/reference" for fault in faults)
