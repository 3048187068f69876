"""`python -m tests.reward.faulty_scorer`: a judge that does to a rollout what the first word of its completion says."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from services.reward.__main__ import serve
from services.reward.scorer import Judgement, PassingFault
from tba_common.messages import Rollout

SECONDS: Final = 0.02  # of a visit that goes well


class FaultyScorer:
    """Gives every completion 1. `hang`, `crash`, `die`, `nan`, `flaky` and `down` fare otherwise."""

    name: Final = "judge"
    version: Final = "1"

    def __init__(self) -> None:
        self._seen: Counter[int] = Counter()  # by issue

    def score(self, rollout: Rollout, options: Mapping[str, Any]) -> Judgement:
        self._seen[rollout.prompt.issue_id] += 1
        word = rollout.completions[0].text.partition(" ")[0]
        values = np.ones(len(rollout.completions), dtype=np.float32)
        match word:
            case "hang":
                threading.Event().wait()
            case "crash":
                raise ZeroDivisionError("by 0")
            case "die":
                os._exit(137)  # as after a SIGKILL, nothing runs
            case "nan":
                values[-1] = np.nan
            case "down":
                raise PassingFault("judge answered 503")
            case "flaky" if self._seen[rollout.prompt.issue_id] <= 2:
                raise PassingFault("judge answered 500")
        time.sleep(SECONDS)
        return Judgement(values)


@contextmanager
def _opened(name: str) -> Iterator[FaultyScorer]:
    yield FaultyScorer()


if __name__ == "__main__":
    serve("judge", _opened)
