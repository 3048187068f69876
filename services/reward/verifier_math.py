"""Are two writings the same mathematics? The door to math-verify.

It may take for ever on hostile text: `$9^{9^9}$` is worked out, digit by digit.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any, Final

from tba_common.codec import BadMessage

# Answers stand at the end. math-verify takes quadratic time in the number of numbers: 0.1 s at this length.
_MATH_CHARACTERS: Final = 4_096
_DELIMITERS: Final = ("$", "\\(", "\\[", "\\boxed")

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off


@lru_cache(maxsize=1_024)  # a policy that has learned repeats itself
def equivalent(text: str, reference: str) -> bool:
    """Mathematical equivalence, as math-verify sees it; after `####` where there is one.

    The answer is looked for in `\\boxed{}`, between LaTeX delimiters, then as a plain number or fraction. A reference
    without delimiters is LaTeX as it stands. The very text of the reference is right, whatever math-verify reads in it.

    Raises:
        BadMessage: the reference is not mathematics.
    """
    from math_verify import verify

    gold = _parse_reference(reference)
    answer = _final(text)
    if answer == _final(reference):
        return True
    return bool(verify(list(gold), _parse(answer), timeout_seconds=None))


def warm_up() -> None:
    """Import math-verify and build its grammar tables, which the first evaluation would pay for otherwise."""
    equivalent("$\\frac{2}{4}$", "1/2")


@lru_cache(maxsize=256)  # a group shares its reference
def _parse_reference(reference: str) -> tuple[Any, ...]:
    answer = _final(reference)
    delimited = any(delimiter in answer for delimiter in _DELIMITERS)
    parsed = _parse(answer if delimited else f"\\boxed{{{answer}}}") or _parse(answer)
    if not parsed:
        raise BadMessage("reference: expected a mathematical expression for match math, got none")
    return tuple(parsed)


def _final(text: str) -> str:
    """Return what follows the last `####`, or the end of a text without it."""
    tail = text[-_MATH_CHARACTERS:].strip()
    return tail.rpartition("####")[2].strip() or tail


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    # Its own time limits are alarms that it also swallows; ours end the process.
    return list(parse(text, parsing_timeout=None))
