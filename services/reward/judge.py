"""The judge: what a language model behind an OpenAI-compatible endpoint thinks of each answer, from 0 to 1.

It judges only as long as it is seen to judge: at the start and every so often it must tell good answers from bad ones,
and from those that talk to it. A judge that fails ends the process; nothing is scored by it.
"""

from __future__ import annotations

import logging
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np

from services.reward.judge_canary import CanaryFailed, check
from services.reward.judge_client import ChatEndpoint
from services.reward.judge_prompt import PROMPT_VERSION, RESPONSE_FORMAT, Case, messages, score_in
from services.reward.judge_settings import JudgeSettings
from services.reward.scorer import Judgement, PassingFault, ScoringFailed, options_as
from tba_common.messages import Rollout
from tba_common.scorer_options import JudgeOptions
from tba_common.settings import WRONG_SETTINGS

_TEMPERATURE_OF_VOTES: Final = 0.7  # at 0 all votes are one opinion

log = logging.getLogger(__name__)


class Judge:
    """A `Scorer` by a language model. Each completion is shown to it alone, as data."""

    def __init__(
        self, name: str, endpoint: ChatEndpoint, threads: ThreadPoolExecutor, *, model: str, canary_seconds: float
    ) -> None:
        self.name: Final = name
        self.version: Final = f"{PROMPT_VERSION}/{model}"
        self._endpoint = endpoint
        self._threads = threads
        self._canary_seconds = canary_seconds
        self._canary_lock = threading.Lock()
        self._trusted_until = 0.0
        self._fault: tuple[float, PassingFault] | None = None  # of the last check, and when

    def score(self, rollout: Rollout, options: Mapping[str, Any]) -> Judgement:
        """Return the mean of the votes on each completion; `disagreement`, their spread, is a detail.

        Raises:
            BadMessage: no rubric, or options that mean nothing.
            ScoringFailed: the votes disagree, or one is no verdict.
            PassingFault: the endpoint is busy or away.
            CanaryFailed: the judge is no longer fit to judge.
        """
        wanted = options_as(JudgeOptions, options)
        self.prove()
        prompt, count = rollout.prompt, len(rollout.completions)
        cases = [
            Case(wanted.rubric, question=prompt.text, answer=completion.text, reference=prompt.reference)
            for completion in rollout.completions
            for _ in range(wanted.votes)
        ]
        temperature = 0.0 if wanted.votes == 1 else _TEMPERATURE_OF_VOTES
        scores = list(self._threads.map(lambda case: self._verdict(case, temperature), cases))
        votes = np.array(scores, dtype=np.float32).reshape(count, wanted.votes)  # [completions, votes]
        spread = np.ptp(votes, axis=1)  # [completions]
        for index in np.flatnonzero(spread > wanted.max_disagreement):
            raise ScoringFailed(
                f"judge: votes on completion {index + 1} of {count} differ by {spread[index]:g}, "
                f"expected at most {wanted.max_disagreement:g}"
            )
        return Judgement(votes.mean(axis=1), details={"disagreement": spread})

    def prove(self) -> None:
        """Check the judge with answers of known worth, if the last check is long ago.

        While the endpoint is away, all who wait for one check share its fault: one after the other, each with its
        timeout, they would outlast the time limit of their visits.

        Raises:
            CanaryFailed, ScoringFailed, PassingFault: see `score`.
        """
        asked_at = time.monotonic()
        with self._canary_lock:
            if self._fault is not None and self._fault[0] > asked_at:
                raise PassingFault(str(self._fault[1]))
            if time.monotonic() >= self._trusted_until:
                try:
                    check(lambda case: self._verdict(case, temperature=0.0))
                except PassingFault as fault:
                    self._fault = time.monotonic(), fault
                    raise
                self._trusted_until = time.monotonic() + self._canary_seconds
                log.info("judge proven", extra={"scorer": self.name})

    def _verdict(self, case: Case, temperature: float) -> float:
        asked = messages(case, nonce=secrets.token_hex(16))
        verdict = self._endpoint.complete(asked, temperature=temperature, response_format=RESPONSE_FORMAT)
        try:
            return score_in(verdict)
        except ValueError as fault:
            raise ScoringFailed(f"judge: {fault}") from fault


@contextmanager
def open_judge(name: str, settings: JudgeSettings) -> Iterator[Judge]:
    """A judge that was seen to judge.

    Raises:
        SystemExit: it was not; stderr says why.
    """
    with ExitStack() as stack:
        endpoint = stack.enter_context(ChatEndpoint(settings))
        threads = ThreadPoolExecutor(settings.judge_requests, thread_name_prefix=name)
        stack.callback(threads.shutdown, cancel_futures=True)
        judge = Judge(name, endpoint, threads, model=settings.judge_model, canary_seconds=settings.judge_canary_seconds)
        try:
            judge.prove()
        except (CanaryFailed, ScoringFailed) as fault:
            sys.stderr.write(f"{name}: {settings.judge_model} is not fit to judge: {fault}\n")
            raise SystemExit(WRONG_SETTINGS) from fault
        except PassingFault as fault:
            raise SystemExit(f"{name}: {fault}") from fault
        yield judge
