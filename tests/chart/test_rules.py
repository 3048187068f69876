"""Every situation keeps every rule; every rule finds the fault that is planted for it."""

from __future__ import annotations

from typing import Final

import pytest

from tests.chart.rendering import SITUATIONS, manifests_of
from tests.chart.rules import numbers, placement, platform, policy, ranks, references, structure, syntax
from tests.chart.rules.rule import Rule

RULES: Final = (
    *structure.RULES,
    *references.RULES,
    *syntax.RULES,
    *numbers.RULES,
    *policy.RULES,
    *placement.RULES,
    *platform.RULES,
    *ranks.RULES,
)


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_situation_keeps_the_rule(rule: Rule, situation: str) -> None:
    assert list(rule.check(manifests_of(situation))) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_rule_finds_its_planted_fault(rule: Rule) -> None:
    manifests = manifests_of(rule.situation)
    rule.plant(manifests)
    assert list(rule.check(manifests)) != []
