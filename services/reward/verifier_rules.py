"""When is an answer right? Three rules: exact, last_number (GSM8K), math (equivalence). The door to math-verify.

An answer that cannot be shown to be right is wrong; a reference that cannot be read is a fault of the prompt.
Rules may take for ever on hostile text (`$9^{9^9}$`): they run in `killable.py`, under a time limit.
"""

from __future__ import annotations

import logging
import math
import re
from collections import deque
from functools import lru_cache
from typing import Any, Final, Literal

from tba_common.codec import BadMessage

Match = Literal["exact", "last_number", "math"]

# Answers stand at the end. math-verify takes quadratic time in the number of numbers: 0.1 s at this length.
_LAST_NUMBER_CHARACTERS: Final = 65_536
_MATH_CHARACTERS: Final = 4_096

# A minus after a word, a digit or a bracket subtracts: `10-5` ends in 5, `= -5` and `-$5` in -5.
_NUMBER: Final = re.compile(r"(?P<minus>(?<![\w)\]}])-)?\$?(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")
_DELIMITERS: Final = ("$", "\\(", "\\[", "\\boxed")


def is_right(text: str, *, match: Match, reference: str) -> bool:
    """Say whether a completion's text gives the reference answer.

    Raises:
        BadMessage: the reference is empty, or not one that this rule can read.
    """
    if not reference.strip():
        raise BadMessage("reference: expected an answer, got only white space")
    match match:
        case "exact":
            return exact(text, reference)
        case "last_number":
            return same_last_number(text, reference)
        case "math":
            return equivalent(text, reference)


def exact(text: str, reference: str) -> bool:
    """The same characters, white space around them aside."""
    return text.strip() == reference.strip()


def same_last_number(text: str, reference: str) -> bool:
    """The GSM8K rule: the last number of both is the same float.

    The reference may be the bare number or the worked solution that ends in `#### N`.

    Raises:
        BadMessage: the reference has no number.
    """
    expected = last_number(reference)
    if expected is None:
        raise BadMessage("reference: expected a number for match last_number, got none")
    return last_number(text) == expected


def last_number(text: str) -> float | None:
    """Return the last number in a text: `-$1,234.50.` gives -1234.5. None without a number that a float can hold."""
    tail = text[-_LAST_NUMBER_CHARACTERS:].replace(",", "").replace("\N{MINUS SIGN}", "-")
    last = next(iter(deque(_NUMBER.finditer(tail), maxlen=1)), None)
    if last is None:
        return None
    value = float(last["number"])
    if not math.isfinite(value):
        return None
    return -value if last["minus"] else value


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

    # Its own time limits are alarms that it also swallows; ours end the process. It warns that they are off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return list(parse(text, parsing_timeout=None))
