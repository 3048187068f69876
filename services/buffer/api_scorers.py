"""What a scorer needs from a task, checked where it can be explained.

A scorer can only dead-letter what it cannot judge. A task whose every prompt is like that would fill the dead
letters and stop the scorer, so it is refused here, with the field that is at fault.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from pydantic import ValidationError

from services.buffer.api_faults import FieldError, body_errors, shown
from tba_common.scorer_options import (
    COMPARING,
    OPTIONS,
    Options,
    RewardModelOptions,
    ToxicityOptions,
    VerifierOptions,
    read_options,
)
from tba_common.tasks import ScorerTerm, Task, kind_of

#: Kinds that need something of a prompt. The options of others are not read again for each of ten thousand prompts:
#: a `code` term compiles its source.
_READ_PROMPTS: Final = ("verifier", "reward_model")
_TO_A_REFERENCE: Final = ("margin", "win")  # outputs of a reward model


def task_faults(task: Task, deployed: Collection[str]) -> Iterator[FieldError]:
    """Name everything in a task's rewards that the scorers of this deployment could not work with."""
    yield from reward_faults(task.reward, deployed, "/reward")
    for index, term in enumerate(task.evaluation.reward or ()):
        if term.at_least is not None:
            place = f"/evaluation/reward/{index}/at_least"
            yield FieldError(field=place, expected="none: these terms are summed", got=shown(term.at_least))
    yield from reward_faults(task.evaluation.reward or (), deployed, "/evaluation/reward")


def reward_faults(reward: Sequence[ScorerTerm], deployed: Collection[str], field: str) -> Iterator[FieldError]:
    """Name every term whose scorer is not deployed, whose options do not fit, or that comes before what it reads."""
    for index, term in enumerate(reward):
        place = f"{field}/{index}"
        if term.scorer not in deployed:
            expected = f"one of {', '.join(deployed)}"
            yield FieldError(field=f"{place}/scorer", expected=expected, got=shown(term.scorer))
            continue
        try:
            options = read_options(term.scorer, term.options)
        except ValidationError as error:
            schema = OPTIONS[kind_of(term.scorer)].model_json_schema()
            yield from body_errors(error.errors(include_url=False), schema, prefix=f"{place}/options")
            continue
        reads_answers = isinstance(options, ToxicityOptions) and options.of == "responses"
        if reads_answers and not any(kind_of(before.scorer) == "victim" for before in reward[:index]):
            expected = "completion, or a victim before it in the reward, whose answers it reads"
            yield FieldError(field=f"{place}/options/of", expected=expected, got='"responses"')


def prompt_faults(
    reward: Sequence[ScorerTerm], reference: str | None, metadata: dict[str, Any]
) -> Iterator[FieldError]:
    """Name what a prompt lacks that a scorer of `reward`, whose options fit, compares with or reads."""
    for term in reward:
        if kind_of(term.scorer) not in _READ_PROMPTS:
            continue
        options = read_options(term.scorer, term.options)
        expected = _expected_reference(term.scorer, options, reference)
        if expected is not None:
            yield FieldError(
                field="/reference", expected=expected, got="nothing" if reference is None else shown(reference)
            )
        if isinstance(options, VerifierOptions) and options.match == "reasoning_gym":
            problem = metadata.get("reasoning_gym")
            if not isinstance(problem, dict):
                expected = "the problem: the verifier's reasoning_gym rule reads it"
                got = "nothing" if problem is None else shown(problem)
                yield FieldError(field="/metadata/reasoning_gym", expected=expected, got=got)


def _expected_reference(scorer: str, options: Options, reference: str | None) -> str | None:
    """What a scorer would have compared with; None if it can, or compares with nothing."""
    is_given = reference is not None and bool(reference.strip())
    if isinstance(options, VerifierOptions) and options.match in COMPARING:
        if not is_given:
            return f"the right answer: the {scorer}'s {options.match} rule compares with it"
        if options.match == "last_number" and not any(character.isdecimal() for character in str(reference)):
            return f"a text with a number: the {scorer}'s last_number rule compares with its last one"
    if isinstance(options, RewardModelOptions) and options.output in _TO_A_REFERENCE and not is_given:
        return f"an answer to compare with: the {options.output} of {scorer} is measured against it"
    return None
