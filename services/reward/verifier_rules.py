"""When is an answer right? The rules of the verifier; those that need no library are told here.

An answer that cannot be shown to be right is wrong; a reference that cannot be read is a fault of the prompt.
Rules may take for ever on hostile text (`$9^{9^9}$`, `(a+)+$`): they run in `killable.py`, under a time limit.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Literal

from tba_common.codec import BadMessage
from tba_common.scorer_options import VerifierOptions

Match = Literal["exact", "last_number", "math"]

# Answers stand at the end, and numbers are many in a text that never ends.
_LAST_NUMBER_CHARACTERS: Final = 65_536

# A minus after a word, a digit or a bracket subtracts: `10-5` ends in 5, `= -5` and `-$5` in -5.
_NUMBER: Final = re.compile(r"(?P<minus>(?<![\w)\]}])-)?\$?(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")


def score_of(text: str, *, options: VerifierOptions, reference: str | None, metadata: Mapping[str, Any]) -> float:
    """Return 1.0 for a right answer and 0.0 for a wrong one; reasoning-gym has scores in between.

    Raises:
        BadMessage: the options, the reference or the metadata are not what the rule needs.
    """
    # Each library loads with the first rule that needs it; `verifier.py` has them loaded before any time counts.
    match options:
        case VerifierOptions(match="exact" | "last_number" | "math" as rule):
            if reference is None:
                raise BadMessage(f"match {rule}: expected a prompt with a reference, got none")
            return float(is_right(text, match=rule, reference=reference))
        case VerifierOptions(match="regex", pattern=str(pattern)):
            return float(re.search(pattern, text) is not None)
        case VerifierOptions(match="json_schema", json_schema=dict(schema)):
            from services.reward.verifier_json import fits

            return float(fits(text, schema))
        case VerifierOptions(match="reasoning_gym"):
            from services.reward.verifier_gym import gym_score

            return gym_score(text, metadata)
        case _:
            raise BadMessage(f"match {options.match}: expected its own option with it, got none")


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
            from services.reward.verifier_math import equivalent

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
