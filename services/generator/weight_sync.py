"""Follows `tba.weights`: fetch and verify while sampling goes on, swap, prove by canary; only a proven one serves.

Law: at any moment one proven version is loaded, and `next_version` says which should be. Weights that fail leave
the version before serving. They are tried once more, and then it is for the process to end, unless only
evaluations asked for them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Final

import numpy as np

from services.generator.engine import Engine, LoadError
from tba_common import metrics
from tba_common.codec import BadMessage
from tba_common.kafka import Reader
from tba_common.messages import Weights
from tba_common.weights import Canary, Snapshot, WeightsError, WeightStore

RETRY_SECONDS: Final = 5.0  # a network file system may show a new directory late

log = logging.getLogger(__name__)


class WeightsRefused(Exception):
    """A version failed twice; says how."""


def next_version(*, serving: int | None, newest: int | None, waiting: Collection[int], evaluating: bool) -> int | None:
    """Return the version that should be loaded, given what is and what evaluations wait for.

    Evaluations in flight hold the weights where they are. Those that wait come before the newest version: first
    those of the version that is loaded, so that versions do not thrash, then the oldest, which is the next to go.
    """
    if evaluating or serving in waiting:
        return serving
    if waiting:
        return min(waiting)
    return max((version for version in (serving, newest) if version is not None), default=None)


def canary_gap(canary: Canary, logprobs: Sequence[float]) -> float:
    """Mean over the canary's sequences of |ours - the learner's| per token, in nats."""
    if not canary.logprobs:
        return 0.0
    tokens = [len(ids) - cut for ids, cut in zip(canary.token_ids, canary.prompt_lengths, strict=True)]
    return float(np.mean(np.abs(np.subtract(logprobs, canary.logprobs)) / tokens))


@dataclass(frozen=True)
class _Failure:
    reason: str
    retry_at: float


@dataclass(frozen=True)
class _Fetch:
    """A version on its way to this machine."""

    version: int
    snapshot: Future[Snapshot]


class WeightSync:
    """The engine's weights: which are announced, which serve, and how one becomes the other."""

    def __init__(
        self,
        engine: Engine,
        reader: Reader,
        store: WeightStore,
        *,
        tolerance: float,
        max_versions_behind: int,
        fetcher: Executor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._store = store
        self._tolerance = tolerance
        self._max_versions_behind = max_versions_behind
        self._fetcher = fetcher
        self._fetch: _Fetch | None = None
        self._clock = clock
        self._newest: Weights | None = None
        self._serving: Snapshot | None = None
        self._highest_served = -1
        self._failures: dict[int, _Failure] = {}  # by version

    @property
    def newest(self) -> int | None:
        """The newest version announced."""
        return None if self._newest is None else self._newest.version

    @property
    def serving(self) -> int | None:
        """The version that is loaded and proven."""
        return None if self._serving is None else self._serving.version

    @property
    def turned_back(self) -> bool:
        """Whether an older version than one before serves, for an evaluation: nothing to train on comes from it."""
        return self._serving is not None and self._serving.version < self._highest_served

    @property
    def trouble(self) -> str:
        """Why this process should not count as ready; empty if it should."""
        failure = None if self._newest is None else self._failures.get(self._newest.version)
        if failure is not None:
            return failure.reason
        if self._serving is None:
            return "waiting for the first weights"
        behind = 0 if self._newest is None or self.turned_back else self._newest.version - self._serving.version
        if behind > self._max_versions_behind:
            return f"version {self._serving.version} serves, {behind} behind the newest"
        return ""

    def poll(self, timeout_seconds: float) -> None:
        """Read announcements; the highest version counts, since a learner that comes back repeats itself."""
        for record in self._reader.poll(timeout_seconds):
            try:
                message = record.message()
            except BadMessage as error:
                # The buffer reads this topic too and dead-letters it once, for all of us.
                log.warning("announcement does not decode", extra={"offset": record.offset, "reason": str(error)})
                continue
            if isinstance(message, Weights) and (self._newest is None or message.version > self._newest.version):
                self._newest = message

    def load(self, version: int) -> None:
        """Take a step towards serving `version`: begin to fetch it, or swap it in once it is here.

        A version that was on its way when a newer one came is taken too, so that fast publishing starves nobody.
        One that fails leaves the version before serving, and is tried again after RETRY_SECONDS.

        Raises:
            WeightsRefused: it failed for the second time.
        """
        failure = self._failures.get(version)
        if failure is not None and self._clock() < failure.retry_at:
            return
        if self._fetch is None:
            self._fetch = _Fetch(version, self._fetcher.submit(self._get, version))
        if not self._fetch.snapshot.done():
            return
        fetched, self._fetch = self._fetch, None
        serving = -1 if self.serving is None else self.serving
        if fetched.version == version or serving < fetched.version < version:
            self._try(fetched, is_last_chance=failure is not None and fetched.version == version)

    def _get(self, version: int) -> Snapshot:
        newest = self._newest
        if newest is not None and version == newest.version:
            return self._store.fetch(newest)
        return self._store.find(version)

    def _try(self, fetched: _Fetch, *, is_last_chance: bool) -> None:
        version = fetched.version
        try:
            self._swap(fetched.snapshot.result())
        except (WeightsError, LoadError, OSError) as error:
            fields = {"policy_version": version, "serving": self.serving, "reason": str(error)}
            log.error("weights refused", extra=fields)
            if is_last_chance:
                raise WeightsRefused(f"version {version} failed twice: {error}") from error
            self._failures[version] = _Failure(str(error), self._clock() + RETRY_SECONDS)
        else:
            self._failures.pop(version, None)

    def _swap(self, snapshot: Snapshot) -> None:
        version, started = snapshot.version, self._clock()
        self._engine.load(snapshot)
        gap = self._prove(snapshot)
        seconds = self._clock() - started
        self._serving = snapshot
        self._highest_served = max(self._highest_served, version)
        metrics.GENERATOR_UPDATE_SECONDS.observe(seconds)
        metrics.GENERATOR_POLICY_VERSION.set(version)
        fields = {"policy_version": version, "seconds": round(seconds, 3), "canary_gap": round(gap, 6)}
        log.info("weights loaded", extra=fields)

    def _prove(self, snapshot: Snapshot) -> float:
        """Compare what was loaded with what the learner meant; if they differ, put back what served before."""
        canary = snapshot.canary
        gap = canary_gap(canary, self._engine.logprobs(canary.token_ids, canary.prompt_lengths))
        metrics.GENERATOR_CANARY_GAP.set(gap)
        if gap <= self._tolerance:  # false for a NaN too
            return gap
        if self._serving is not None:
            try:
                self._engine.restore(self._serving)
            except LoadError as error:
                raise RuntimeError("unproven weights are loaded and the proven ones are gone") from error
        raise WeightsError(
            f"version {snapshot.version}: canary gap expected at most {self._tolerance} nats a token, got {gap:.4f}"
        )
