"""The verifier: 1 for a right answer, 0 for a wrong one, by a rule that the task names in `options.match`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any, Final, cast, get_args

import numpy as np

from services.reward.killable import EvaluationFailed, Killable
from services.reward.scorer import ScoringFailed
from services.reward.settings import RewardSettings
from services.reward.verifier_rules import Match, is_right, warm_up
from tba_common.codec import BadMessage
from tba_common.messages import Float32s, Rollout

MATCHES: Final[tuple[Match, ...]] = get_args(Match)
_RULES_VERSION: Final = 1


class Verifier:
    """A `Scorer` by rules. Each evaluation runs in a process that is killed at the time limit."""

    name: Final = "verifier"

    def __init__(self, processes: Killable) -> None:
        self._processes = processes
        self.version: Final = f"{_RULES_VERSION}/math-verify-{version('math-verify')}"

    def score(self, rollout: Rollout, options: Mapping[str, Any]) -> Float32s:
        """Return 1.0 or 0.0 for each completion, shape [completions].

        Raises:
            BadMessage: unknown options, or no reference that the rule can read.
            ScoringFailed: a completion that exceeds the time limit, or kills the process that evaluates it.
        """
        rule = match_of(options)
        reference = rollout.prompt.reference
        if reference is None:
            raise BadMessage(f"match {rule}: expected a prompt with a reference, got none")
        texts = [completion.text for completion in rollout.completions]
        try:
            right = self._processes.map(partial(is_right, match=rule, reference=reference), texts)
        except EvaluationFailed as failure:
            where = f"completion {failure.index + 1} of {len(texts)}"
            raise ScoringFailed(f"verifier {failure} on {where}") from failure
        return np.array(right, dtype=np.float32)


def match_of(options: Mapping[str, Any]) -> Match:
    """Read the options of a verifier term: `{"match": "exact" | "last_number" | "math"}`, exact if left out.

    Raises:
        BadMessage: another option, or another rule.
    """
    unknown = sorted(set(options) - {"match"})
    if unknown:
        raise BadMessage(f"verifier options: expected only match, got {', '.join(unknown)}")
    match = options.get("match", "exact")
    if match not in MATCHES:
        raise BadMessage(f"verifier option match: expected one of {', '.join(MATCHES)}, got {match!r}")
    return cast(Match, match)


@contextmanager
def open_verifier(settings: RewardSettings) -> Iterator[Verifier]:
    """A verifier whose worker processes have started; a broken installation shows here, not at the first rollout."""
    with Killable(
        processes=settings.evaluation_processes,
        time_limit_seconds=settings.time_limit_seconds,
        recycle_after=settings.recycle_after_evaluations,
        warm_up=warm_up,
        preload=("math_verify", warm_up.__module__),
    ) as processes:
        processes.map(partial(is_right, match="exact", reference="1"), ["1"])
        yield Verifier(processes)
