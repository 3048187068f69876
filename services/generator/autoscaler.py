"""`tba-autoscaler`: looks, decides by the law, acts, and says so, every few seconds. One of its replicas leads.

It holds no state that matters: a new one knows less for a few minutes, and holds until it does. Whatever it cannot
see or may not do changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from services.generator.scaling import Memory, decide
from services.generator.scaling_api import ApiUnavailable, Observation, ScalingApi
from services.generator.scaling_values import Decision, Fleet, Limits
from tba_common.metrics import AUTOSCALER_DESIRED

log = logging.getLogger(__name__)


class NotAllowed(Exception):
    """The fleet is not ours to change now; the message says why. Nothing was changed."""


class Unreachable(Exception):
    """What holds the fleet does not answer."""


class Actuator(Protocol):
    """What holds the generators. Every method may raise `Unreachable`."""

    def lead(self) -> bool:
        """Whether this process is the one that decides, now and for the next moment."""

    def fleet(self) -> Fleet:
        """The generators there are."""

    def scale(self, decision: Decision, fleet: Fleet) -> None:
        """Ask for that many. Raises `NotAllowed`."""

    def close(self) -> None:
        """Let another one lead at once."""


class Autoscaler:
    """The loop, one `step` at a time. With `dry_run` it only says what it would do."""

    def __init__(
        self,
        api: ScalingApi,
        actuator: Actuator,
        limits: Limits,
        *,
        dry_run: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._actuator, self._limits, self._dry_run, self._clock = api, actuator, limits, dry_run, clock
        self._memory = Memory()
        self._trouble = ""

    def step(self) -> str:
        """Look, decide, act. Returns why it could not, empty when it could."""
        AUTOSCALER_DESIRED.clear()  # an old number, or two leaders' numbers, would be scaled by
        try:
            if not self._actuator.lead():
                self._memory = Memory()  # what was learned gets old while another one leads
                return ""
            fleet = self._actuator.fleet()
            trouble = self._turn(fleet)
        except (NotAllowed, Unreachable) as error:
            trouble = str(error)
        self._tell(trouble)
        return trouble

    def keep_leading(self) -> None:
        """Between two steps: renew what makes us the leader, or try to become it."""
        try:
            self._actuator.lead()
        except (NotAllowed, Unreachable) as error:
            self._tell(str(error))

    def _turn(self, fleet: Fleet) -> str:
        trouble = ""
        try:
            seen = self._api.observe()
        except ApiUnavailable as error:
            seen, trouble = Observation(None, None), str(error)
        decision, self._memory = decide(
            seen.signals, fleet, self._memory, self._limits, now=self._clock(), override=seen.override
        )
        AUTOSCALER_DESIRED.labels(decision.reason).set(decision.desired)
        applied = not self._dry_run
        if applied and decision.desired != fleet.replicas:
            try:
                self._actuator.scale(decision, fleet)
            except NotAllowed as error:
                applied, trouble = False, str(error)
            else:
                fields = {"replicas": fleet.replicas, "desired": decision.desired, "reason": decision.reason}
                log.info("scaled", extra=fields)
        try:
            self._api.report(decision, fleet, seen.signals, applied=applied)
        except ApiUnavailable as error:
            trouble = trouble or str(error)
        return trouble

    def _tell(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.warning("nothing is changed", extra={"reason": trouble})
        self._trouble = trouble
