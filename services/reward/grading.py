"""One visit of a rollout to a scorer: its term is found, the completions are judged, the slip is stamped."""

from __future__ import annotations

import time

from services.reward.scorer import Scorer
from services.reward.slip import next_term, stamp
from tba_common.messages import Rollout, Score, Trajectories


def visit(scorer: Scorer, rollout: Rollout, *, attempts: int = 1) -> Rollout | Trajectories:
    """Score a rollout and stamp its slip; `attempts` counts this visit and those that failed before it.

    Raises:
        BadMessage: the rollout should not be here, or cannot be scored as it is.
        ScoringFailed: the scorer found no score.
        PassingFault: the scorer found no score now.
    """
    term = next_term(rollout, scorer.name)
    started = time.perf_counter()
    judgement = scorer.score(rollout, term.options)
    score = Score(
        scorer=scorer.name,
        version=scorer.version,
        values=judgement.values,
        seconds=time.perf_counter() - started,
        attempts=attempts,
        details=dict(judgement.details),
    )
    return stamp(rollout, score, judgement.responses)
