"""Generators as processes of one machine: who answers, who is ready. Whoever started them follows what the API says.

The API's desired number is what `tba up --autoscale` reads, as KEDA does in a cluster; to scale is to have said so.
"""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from typing import Final

from services.generator.scaling_values import Decision, Fleet

_TIMEOUT_SECONDS: Final = 1.0


class ProcessActuator:
    """The processes that may listen at `addresses` (host:port of their health servers)."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._wanted: int | None = None

    def lead(self) -> bool:
        """There is one of us on a machine."""
        return True

    def fleet(self) -> Fleet:
        """What was asked for, or at first those that listen; and how many of them are ready."""
        answers = [_readiness(address) for address in self._addresses]
        replicas = sum(status is not None for status in answers) if self._wanted is None else self._wanted
        return Fleet(replicas=replicas, ready=min(replicas, answers.count(200)))

    def scale(self, decision: Decision, fleet: Fleet) -> None:
        """Remember what is asked for: it travels with the report of the decision."""
        self._wanted = decision.desired

    def close(self) -> None:
        """Nothing is held."""


def _readiness(address: str) -> int | None:
    """The status of /readyz; None when nobody listens."""
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
