"""The score that reasoning-gym gives an answer to one of its problems. The door to that library, which may be absent.

The prompt's metadata names the problem: {"reasoning_gym": {"task", "seed", "index", "config"}}, of which it is built
again, or {"reasoning_gym": {"task", "entry"}}, the problem itself as the library made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

import pydantic

from tba_common.codec import BadMessage
from tba_common.tasks import Frozen

#: Tasks whose score comes from running the answer as Python; `composite` may be made of them. What a policy writes is
#: never run here.
RUNS_ANSWERS: Final = frozenset(
    {
        "binary_matrix",
        "composite",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)


class Problem(Frozen):
    """One problem of reasoning-gym: by where it comes from, or as it is."""

    task: str
    seed: int = 0
    index: int = pydantic.Field(default=0, ge=0, le=10_000_000)
    config: dict[str, Any] = pydantic.Field(default_factory=dict)
    entry: dict[str, Any] | None = None


def gym_score(text: str, metadata: Mapping[str, Any]) -> float:
    """Return the library's score, from 0 to 1, of what stands between `<answer>` tags; of the whole text without them.

    Raises:
        BadMessage: no problem in the metadata, one that cannot be built, or reasoning-gym is not installed.
    """
    try:
        problem = Problem.model_validate(metadata.get("reasoning_gym"))
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, ("reasoning_gym", *fault["loc"])))
        raise BadMessage(f"metadata {place}: {fault['msg']}, got {fault['input']!r}") from error
    if problem.task in RUNS_ANSWERS:
        raise BadMessage(f"reasoning_gym task {problem.task}: expected one that does not run answers as Python")
    try:
        from reasoning_gym.utils import extract_answer
    except ImportError as error:
        raise BadMessage(
            "match reasoning_gym: expected reasoning-gym to be installed: pip install 'tba[gym]'"
        ) from error
    score, entry = _built(problem.model_dump_json())
    answer = extract_answer(text)
    try:
        return score(text.strip() if answer is None else answer, entry)
    except _FAULTS:
        return 0.0  # not every task of the library reads every answer; what it can read is known from its own


#: What a library raises over values it did not expect.
_FAULTS: Final = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@lru_cache(maxsize=256)  # a group shares its problem
def _built(problem_json: str) -> tuple[Callable[[str, dict[str, Any]], float], dict[str, Any]]:
    from reasoning_gym import create_dataset

    problem = Problem.model_validate_json(problem_json)
    try:
        dataset = create_dataset(problem.task, seed=problem.seed, **({"size": problem.index + 1} | problem.config))
        entry: dict[str, Any] = dataset[problem.index] if problem.entry is None else problem.entry
        dataset.score_answer(entry["answer"], entry)
    except _FAULTS as error:
        raise BadMessage(f"reasoning_gym task {problem.task}: cannot be built: {error!r}") from error
    return dataset.score_answer, entry
