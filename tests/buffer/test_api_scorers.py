from __future__ import annotations

from typing import Any, get_args

import pytest

from services.buffer.api_scorers import prompt_faults, task_faults
from tba_common.scorer_options import VerifierOptions
from tba_common.tasks import ScorerTerm, Task

EVERY = ("verifier", "reward_model", "reward_model.gold", "victim", "toxicity", "reference")


def term(scorer: str = "verifier", **options: Any) -> ScorerTerm:
    return ScorerTerm(scorer=scorer, options=options)


def faults(*reward: ScorerTerm, deployed: tuple[str, ...] = EVERY, **fields: Any) -> list[tuple[str, str, str]]:
    task = Task.model_validate({"name": "t", "reward": reward, **fields})
    return [(fault.field, fault.expected, fault.got) for fault in task_faults(task, deployed)]


def lacks(*reward: ScorerTerm, reference: str | None = None, **metadata: Any) -> list[str]:
    return [fault.field for fault in prompt_faults(reward, reference, metadata)]


NEEDED: dict[str, dict[str, Any]] = {"regex": {"pattern": "a+"}, "json_schema": {"json_schema": {"type": "object"}}}


@pytest.mark.parametrize("match", get_args(VerifierOptions.model_fields["match"].annotation))
def test_every_rule_of_the_verifier_may_be_asked_for(match: str) -> None:
    assert faults(term(match=match, **NEEDED.get(match, {}))) == []


def test_options_that_a_scorer_does_not_know_are_named() -> None:
    unknown, wrong = sorted(faults(term(match="fuzzy", strict=True)), reverse=True)
    assert unknown == (
        "/reward/0/options/strict",
        "no field of this name; known fields: match, pattern, json_schema",
        "true",
    )
    assert wrong[0] == "/reward/0/options/match"
    assert wrong[1].startswith("'exact', 'last_number', 'math'")
    assert wrong[2] == '"fuzzy"'


def test_options_that_do_not_go_together_are_named() -> None:
    ((field, expected, _),) = faults(term(match="regex"))
    assert (field, expected) == ("/reward/0/options", "with match regex and only there, got match regex")


def test_a_scorer_that_is_not_deployed_is_refused_with_those_that_are() -> None:
    reward = (term(), term("reward_model.gold"))
    assert faults(*reward, deployed=("verifier", "judge")) == [
        ("/reward/1/scorer", "one of verifier, judge", '"reward_model.gold"')
    ]


def test_the_scorers_of_held_out_prompts_must_be_deployed_too() -> None:
    evaluation = {"reward": [{"scorer": "judge", "options": {"rubric": "brief"}}]}
    ((field, _, got),) = faults(term(), evaluation=evaluation)
    assert (field, got) == ("/evaluation/reward/0/scorer", '"judge"')


def test_evaluation_terms_have_no_gate() -> None:
    evaluation = {"reward": [{"scorer": "verifier", "at_least": 1.0}]}
    ((field, expected, got),) = faults(term(), evaluation=evaluation)
    assert (field, expected, got) == ("/evaluation/reward/0/at_least", "none: these terms are summed", "1.0")


def test_toxicity_of_answers_wants_a_victim_before_it() -> None:
    victim, toxicity = term("victim"), term("toxicity", of="responses")
    assert faults(victim, toxicity) == []
    ((field, expected, _),) = faults(toxicity, victim)
    assert field == "/reward/0/options/of"
    assert "a victim before it" in expected
    assert faults(term("toxicity", of="completion")) == []


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
    assert lacks(term(match=match), reference=reference) == ([] if fits else ["/reference"])


@pytest.mark.parametrize(("output", "fits"), [("score", True), ("margin", False), ("win", False)])
def test_a_reward_model_needs_a_reference_to_win_against(output: str, fits: bool) -> None:
    assert lacks(term("reward_model.gold", output=output)) == ([] if fits else ["/reference"])
    assert lacks(term("reward_model.gold", output=output), reference="an answer") == []


def test_a_reasoning_gym_prompt_carries_its_problem() -> None:
    gym = term(match="reasoning_gym")
    assert lacks(gym) == ["/metadata/reasoning_gym"]
    assert lacks(gym, reasoning_gym={"task": "basic_arithmetic", "seed": 0, "index": 1}) == []


def test_options_that_read_nothing_of_a_prompt_are_not_read_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand prompts would compile the source of a `code` term ten thousand times."""
    monkeypatch.setattr("services.buffer.api_scorers.read_options", lambda scorer, options: pytest.fail(scorer))
    assert lacks(term("code", source="def score(prompt, completion, reference): return 1")) == []


def test_a_rule_that_compares_with_nothing_needs_no_reference() -> None:
    assert lacks(term(match="regex", pattern="a+"), term("victim"), term("toxicity", of="responses")) == []
