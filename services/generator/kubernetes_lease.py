"""One leader among the replicas of the autoscaler: a Lease that is renewed, and taken over when it no longer is.

As client-go does it: a holder is dead when its Lease has not changed for its duration by our own clock, so that clocks
that differ do no harm; every write names the version that it replaces, so that of two who take only one gets it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from kubernetes.client import ApiClient, ApiException, CoordinationV1Api, V1Lease, V1LeaseSpec, V1ObjectMeta

_TIMEOUT_SECONDS: Final = 4.0
_CONFLICT: Final = 409
_MISSING: Final = 404


def micro_time() -> datetime:
    """Now, as the API server reads a MicroTime: it refuses one without a fraction of a second."""
    now = datetime.now(UTC)
    return now.replace(microsecond=max(1, now.microsecond))


class KubernetesLease:
    """The right to decide, held by `identity`. Methods raise ApiException and urllib3's HTTPError.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(
        self, api: ApiClient, namespace: str, name: str, identity: str, seconds: int, clock: Callable[[], float]
    ) -> None:
        self._api = CoordinationV1Api(api)
        self._namespace, self._name, self._identity = namespace, name, identity
        self._seconds, self._clock = seconds, clock
        self._renewed_at = float("-inf")
        self._seen: Any = None
        self._seen_at = clock()

    @property
    def is_held(self) -> bool:
        """Whether it is certain to be ours still: another one takes it a third of its duration later."""
        return self._clock() - self._renewed_at < self._seconds * 2 / 3

    def hold(self) -> bool:
        """Renew it, or take it if nobody does; return whether it is ours."""
        now = self._clock()
        try:
            lease = self._api.read_namespaced_lease(self._name, self._namespace, _request_timeout=_TIMEOUT_SECONDS)
        except ApiException as error:
            if error.status != _MISSING:
                raise
            return self._write(now, None)
        spec = lease.spec or V1LeaseSpec()
        seen = (spec.holder_identity, spec.renew_time, lease.metadata.resource_version)
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        is_mine = spec.holder_identity == self._identity
        is_free = not spec.holder_identity or now - self._seen_at >= (spec.lease_duration_seconds or self._seconds)
        return self._write(now, lease) if is_mine or is_free else False

    def release(self) -> None:
        """Give it back, so that the next one need not wait."""
        if self.is_held:
            self._renewed_at = float("-inf")
            lease = self._api.read_namespaced_lease(self._name, self._namespace, _request_timeout=_TIMEOUT_SECONDS)
            if lease.spec.holder_identity == self._identity:
                lease.spec.holder_identity = ""
                self._replace(lease)

    def _write(self, now: float, lease: V1Lease | None) -> bool:
        spec = lease.spec if lease is not None and lease.spec is not None else V1LeaseSpec(lease_transitions=-1)
        if spec.holder_identity != self._identity:
            spec.acquire_time, spec.lease_transitions = micro_time(), (spec.lease_transitions or 0) + 1
        spec.holder_identity, spec.lease_duration_seconds, spec.renew_time = self._identity, self._seconds, micro_time()
        try:
            if lease is None:
                body = V1Lease(metadata=V1ObjectMeta(name=self._name), spec=spec)
                self._api.create_namespaced_lease(self._namespace, body, _request_timeout=_TIMEOUT_SECONDS)
            else:
                lease.spec = spec
                self._replace(lease)
        except ApiException as error:
            if error.status != _CONFLICT:
                raise
            self._renewed_at = float("-inf")
            return False
        self._renewed_at = now  # before it was asked for: the others count from later
        return True

    def _replace(self, lease: V1Lease) -> None:
        self._api.replace_namespaced_lease(self._name, self._namespace, lease, _request_timeout=_TIMEOUT_SECONDS)
