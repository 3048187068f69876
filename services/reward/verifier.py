"""The verifier: how right an answer is, by a rule that the task names in `options.match`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any, Final

import numpy as np

from services.reward.killable import EvaluationFailed, Killable
from services.reward.scorer import Judgement, ScoringFailed, options_as
from services.reward.verifier_math import warm_up
from services.reward.verifier_rules import score_of
from services.reward.verifier_settings import VerifierSettings
from tba_common.messages import Rollout
from tba_common.scorer_options import VerifierOptions

_RULES_VERSION: Final = 1
#: What worker processes are born with. reasoning-gym takes seconds to load; where it is absent, it is passed over.
PRELOAD: Final = (
    "math_verify",
    "reasoning_gym",
    *(f"services.reward.verifier_{part}" for part in ("rules", "math", "json", "gym")),
)


class Verifier:
    """A `Scorer` by rules. Each evaluation runs in a process that is killed at the time limit."""

    def __init__(self, name: str, processes: Killable) -> None:
        self.name: Final = name
        self._processes = processes
        self.version: Final = f"{_RULES_VERSION}/math-verify-{version('math-verify')}"

    def score(self, rollout: Rollout, options: Mapping[str, Any]) -> Judgement:
        """Judge each completion from 0.0, wrong, to 1.0, right.

        Raises:
            BadMessage: unknown options, or a reference or metadata that the rule cannot read.
            ScoringFailed: a completion that exceeds the time limit, or kills the process that evaluates it.
        """
        rule = partial(
            score_of,
            options=options_as(VerifierOptions, options),
            reference=rollout.prompt.reference,
            metadata=rollout.prompt.metadata,
        )
        texts = [completion.text for completion in rollout.completions]
        try:
            scores = self._processes.map(rule, texts)
        except EvaluationFailed as failure:
            where = f"completion {failure.index + 1} of {len(texts)}"
            raise ScoringFailed(f"{self.name} {failure} on {where}") from failure
        return Judgement(np.array(scores, dtype=np.float32))


@contextmanager
def open_verifier(name: str, settings: VerifierSettings) -> Iterator[Verifier]:
    """A verifier whose worker processes have started; a broken installation shows here, not at the first rollout."""
    with Killable(
        processes=settings.evaluation_processes,
        time_limit_seconds=settings.time_limit_seconds,
        recycle_after=settings.recycle_after_evaluations,
        warm_up=warm_up,
        preload=PRELOAD,
    ) as processes:
        processes.map(str.strip, ["1"])
        yield Verifier(name, processes)
