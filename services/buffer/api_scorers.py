"""What a scorer needs from a task, checked where it can be explained.

A scorer can only dead-letter what it cannot judge. A task whose every prompt is like that would fill the dead
letters and stop the scorer, so it is refused here, with the field that is at fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from services.buffer.api_faults import FieldError, shown
from tba_common.tasks import PromptSpec, ScorerTerm

_VERIFIER: Final = "verifier"
_MATCHES: Final = ("exact", "last_number", "math")  # the rules of services/reward/verifier_rules.py


def option_faults(reward: Sequence[ScorerTerm]) -> Iterator[FieldError]:
    """Name every option that its scorer does not know."""
    for index, term in enumerate(reward):
        if term.scorer != _VERIFIER:
            continue
        place = f"/reward/{index}/options"
        for name, value in term.options.items():
            if name != "match":
                yield FieldError(field=f"{place}/{name}", expected="no option but match", got=shown(value))
            elif value not in _MATCHES:
                yield FieldError(field=f"{place}/match", expected=f"one of {', '.join(_MATCHES)}", got=shown(value))


def reference_faults(
    reward: Sequence[ScorerTerm], specs: Sequence[PromptSpec], field: str, first: int
) -> Iterator[FieldError]:
    """Name every prompt without the reference answer that a scorer of `reward` compares with."""
    rules = [term.options.get("match", "exact") for term in reward if term.scorer == _VERIFIER]
    if not rules:
        return
    for index, spec in enumerate(specs, start=first):
        expected = _expected(str(rules[0]), spec.reference)
        if expected is not None:
            got = "nothing" if spec.reference is None else shown(spec.reference)
            yield FieldError(field=f"{field}/{index}/reference", expected=expected, got=got)


def _expected(rule: str, reference: str | None) -> str | None:
    if reference is None or not reference.strip():
        return f"the right answer: the verifier's {rule} rule compares with it"
    if rule == "last_number" and not any(character.isdecimal() for character in reference):
        return "a text with a number: the verifier's last_number rule compares with its last one"
    return None
