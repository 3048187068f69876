"""Problems of reasoning-gym are built again from where they come from, and scored by the library's own rule."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import pytest
from reasoning_gym import create_dataset
from reasoning_gym.factory import DATASETS

from services.reward.verifier_gym import RUNS_ANSWERS, gym_score
from tba_common.codec import BadMessage

pytestmark = pytest.mark.integration


def of(task: str, **fields: Any) -> dict[str, Any]:
    return {"reasoning_gym": {"task": task, **fields}}


@pytest.mark.parametrize("config", [{}, {"min_terms": 5, "max_terms": 6}, {"size": 50}])
def test_the_problem_is_the_one_that_task_seed_index_and_config_make(config: dict[str, Any]) -> None:
    entry = create_dataset("chain_sum", seed=7, **({"size": 5} | config))[4]
    metadata = of("chain_sum", seed=7, index=4, config=config)
    assert gym_score(entry["answer"], metadata) == 1.0
    assert gym_score("none", metadata) == 0.0


def test_a_problem_may_come_as_the_library_made_it() -> None:
    entry = create_dataset("leg_counting", seed=1, size=1)[0]
    assert gym_score(entry["answer"], of("leg_counting", entry=entry)) == 1.0


def test_the_last_answer_between_tags_counts_where_there_is_one() -> None:
    entry = create_dataset("chain_sum", seed=7, size=1)[0]
    text = f"<answer>no</answer> or rather <answer> {entry['answer']} </answer>, as I said"
    assert gym_score(text, of("chain_sum", seed=7)) == 1.0


def test_scores_lie_between_as_the_library_says() -> None:
    entry = create_dataset("spell_backward", seed=3, size=1)[0]
    assert 0 < gym_score(entry["answer"] + "x", of("spell_backward", seed=3)) < 1


def test_an_answer_that_the_library_stumbles_over_is_wrong() -> None:
    entry = create_dataset("prime_factorization", seed=3, size=1)[0]
    with pytest.raises(ValueError, match="invalid literal"):
        create_dataset("prime_factorization").score_answer("seven", entry)
    assert gym_score("seven", of("prime_factorization", seed=3)) == 0.0


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "metadata reasoning_gym: Input should be .*, got None"),
        (of("products", indx=3), "metadata reasoning_gym.indx: Extra inputs are not permitted, got 3"),
        (of("no_such_task"), "reasoning_gym task no_such_task: cannot be built: .*not registered"),
        (of("products", config={"min_terms": "many"}), "reasoning_gym task products: cannot be built"),
        (of("products", config={"trms": 1}), "reasoning_gym task products: cannot be built: .*trms"),
        (of("products", entry={"question": "2 * 3"}), "task products: cannot be built: KeyError"),
        (of("spiral_matrix"), "task spiral_matrix: expected one that does not run answers as Python"),
        (of("countdown"), "task countdown: expected one that does not run answers as Python"),
    ],
)
def test_a_problem_that_cannot_be_built_is_a_fault_of_the_prompt(metadata: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadMessage, match=reason):
        gym_score("1", metadata)


def test_every_task_that_runs_answers_is_known() -> None:
    runs = re.compile(r"\b(eval|exec|parse_expr|sympify)\(")
    found = {name for name, (task, _) in DATASETS.items() if runs.search(inspect.getsource(task.score_answer))}
    # number_sorting evaluates its own answer, never the policy's; composite hands answers to the tasks it is made of.
    assert (found - {"number_sorting"}) | {"composite"} == RUNS_ANSWERS


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.utils", None)
    with pytest.raises(BadMessage, match=r"expected reasoning-gym to be installed: pip install 'tba\[gym\]'"):
        gym_score("1", of("products"))
