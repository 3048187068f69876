"""Generators as the pods of one Deployment: the door to Kubernetes.

It writes nothing but that Deployment's scale, the deletion cost of its pods, its own Lease and Events, and not even
those when another autoscaler targets the same Deployment, or when it may no longer be the leader.
"""

from __future__ import annotations

import http.client
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import urllib3
from kubernetes import client, config

from services.generator.autoscaler import NotAllowed, Unreachable
from services.generator.kubernetes_lease import KubernetesLease, micro_time
from services.generator.scaling_values import Decision, Fleet

#: All that it may do: API group, resource, verb, and the one object it is about ("*" where a rule cannot name one).
#: The chart's Role holds these and no others.
REQUIRED_RULES: Final[tuple[tuple[str, str, str, str], ...]] = (
    ("apps", "deployments/scale", "get", "{deployment}"),
    ("apps", "deployments/scale", "patch", "{deployment}"),
    ("", "pods", "list", "*"),
    ("", "pods", "patch", "*"),
    ("coordination.k8s.io", "leases", "get", "{lease}"),
    ("coordination.k8s.io", "leases", "update", "{lease}"),
    ("coordination.k8s.io", "leases", "create", "*"),
    ("events.k8s.io", "events", "create", "*"),
    ("autoscaling", "horizontalpodautoscalers", "list", "*"),
    ("keda.sh", "scaledobjects", "list", "*"),
)
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
HEALTH_PORT: Final = "health"  # the name of the generator's port that has /metrics

_MANAGER: Final = "tba-autoscaler"
_TIMEOUT_SECONDS: Final = 4.0
_METRIC: Final = re.compile(rb"^tba_generator_running_completions (\S+)$", re.MULTILINE)
_BUSY: Final = 1_000_000  # a ready pod that does not say what it does
_REFUSED: Final = (403, 409, 422)
_MISSING: Final = 404

log = logging.getLogger(__name__)


def connect(url: str = "") -> client.ApiClient:
    """Return a client: of the cluster this pod is in, of the kubeconfig elsewhere, or of a URL for tests."""
    configuration = client.Configuration()
    if url:
        configuration.host = url
    else:
        config.load_config(client_configuration=configuration)
    configuration.retries = False  # the next turn is the retry
    return client.ApiClient(configuration)


class KubernetesActuator:
    """One Deployment. `identity` must be unique per process; `clock` is monotonic, in seconds."""

    def __init__(
        self,
        api: client.ApiClient,
        *,
        namespace: str,
        deployment: str,
        lease: str,
        identity: str,
        lease_seconds: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._apps, self._core, self._events = client.AppsV1Api(api), client.CoreV1Api(api), client.EventsV1Api(api)
        self._scalers, self._custom = client.AutoscalingV2Api(api), client.CustomObjectsApi(api)
        self._namespace, self._deployment, self._identity = namespace, deployment, identity
        self._lease = KubernetesLease(api, namespace, lease, identity, lease_seconds, clock)
        self._scale: Any = None  # as last read: what we change must not have changed since

    def lead(self) -> bool:
        """Whether we hold the Lease. A server that does not answer takes it away only when it has run out."""
        try:
            with _asking("the Lease"):
                return self._lease.hold()
        except Unreachable:
            if self._lease.is_held:
                return True
            raise

    def fleet(self) -> Fleet:
        """Replicas asked for, and pods that are ready."""
        with _asking(f"the scale of Deployment {self._deployment}"):
            self._scale = self._apps.read_namespaced_deployment_scale(
                self._deployment, self._namespace, _request_timeout=_TIMEOUT_SECONDS
            )
            replicas = self._scale.spec.replicas or 0
            ready = sum(_is_ready(pod) for pod in self._pods())
        return Fleet(replicas=replicas, ready=min(ready, replicas))

    def scale(self, decision: Decision, fleet: Fleet) -> None:
        """Change the scale as it was read by `fleet`. Raises `NotAllowed`."""
        if rival := self._rival():
            raise NotAllowed(f"{rival} targets Deployment {self._deployment} too: remove it, or set TBA_DRY_RUN")
        if decision.desired < fleet.replicas:
            self._price_pods()
        body = {
            "metadata": {"resourceVersion": self._scale.metadata.resource_version},
            "spec": {"replicas": decision.desired},
        }
        if not self._lease.is_held:
            raise NotAllowed("the Lease may be another's by now")
        with _asking(f"to scale Deployment {self._deployment}"):
            self._apps.patch_namespaced_deployment_scale(
                self._deployment, self._namespace, body, field_manager=_MANAGER, _request_timeout=_TIMEOUT_SECONDS
            )
        self._tell(decision, fleet)

    def close(self) -> None:
        """Give the Lease back; if that fails it runs out by itself."""
        try:
            with _asking("the Lease"):
                self._lease.release()
        except (NotAllowed, Unreachable) as error:
            log.warning("the Lease was not given back", extra={"reason": str(error)})

    def _pods(self) -> list[Any]:
        selector = self._scale.status.selector
        listed = self._core.list_namespaced_pod(
            self._namespace, label_selector=selector, _request_timeout=_TIMEOUT_SECONDS
        )
        return [pod for pod in listed.items if pod.metadata.deletion_timestamp is None]

    def _rival(self) -> str:
        """Another autoscaler of the same Deployment, empty if there is none."""
        with _asking("HorizontalPodAutoscalers"):
            listed = self._scalers.list_namespaced_horizontal_pod_autoscaler(
                self._namespace, _request_timeout=_TIMEOUT_SECONDS
            )
        for hpa in listed.items:
            target = hpa.spec.scale_target_ref
            if (target.kind, target.name) == ("Deployment", self._deployment):
                return f"HorizontalPodAutoscaler {hpa.metadata.name}"
        for scaled in self._scaled_objects():
            target = scaled.get("spec", {}).get("scaleTargetRef", {})
            if (target.get("kind", "Deployment"), target.get("name")) == ("Deployment", self._deployment):
                return f"ScaledObject {scaled['metadata']['name']}"
        return ""

    def _scaled_objects(self) -> list[dict[str, Any]]:
        with _asking("ScaledObjects"):
            try:
                found: dict[str, Any] = self._custom.list_namespaced_custom_object(
                    "keda.sh", "v1alpha1", self._namespace, "scaledobjects", _request_timeout=_TIMEOUT_SECONDS
                )
            except client.ApiException as error:
                if error.status == _MISSING:
                    return []  # no KEDA in this cluster
                raise
        items: list[dict[str, Any]] = found["items"]
        return items

    def _price_pods(self) -> None:
        """Say what each pod holds, so that the idle ones go first."""
        with _asking("the pods"):
            for pod in self._pods():
                cost = str(_running(pod) if _is_ready(pod) else 0)
                if (pod.metadata.annotations or {}).get(DELETION_COST) != cost:
                    body = {"metadata": {"annotations": {DELETION_COST: cost}}}
                    self._core.patch_namespaced_pod(
                        pod.metadata.name, self._namespace, body, _request_timeout=_TIMEOUT_SECONDS
                    )

    def _tell(self, decision: Decision, fleet: Fleet) -> None:
        reference = client.V1ObjectReference(
            api_version="apps/v1", kind="Deployment", name=self._deployment, namespace=self._namespace
        )
        event = client.EventsV1Event(
            metadata=client.V1ObjectMeta(name=f"{self._deployment}.{uuid.uuid4().hex[:16]}"),
            event_time=micro_time(),
            regarding=reference,
            type="Normal",
            action="Scale",
            reason="".join(word.capitalize() for word in decision.reason.split("_")),
            note=f"{fleet.replicas} -> {decision.desired}: {decision.sentence}"[:1024],
            reporting_controller=_MANAGER,
            reporting_instance=self._identity[:128],
        )
        try:
            self._events.create_namespaced_event(self._namespace, event, _request_timeout=_TIMEOUT_SECONDS)
        except (client.ApiException, urllib3.exceptions.HTTPError) as error:
            log.warning("no Event was written", extra={"error": repr(error)})  # the audit has it


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """Turn the client's errors into ours, with what was asked."""
    try:
        yield
    except client.ApiException as error:
        kind = NotAllowed if error.status in _REFUSED else Unreachable
        raise kind(f"{what}: {error.status} {error.reason}") from error
    except urllib3.exceptions.HTTPError as error:
        raise Unreachable(f"{what}: {error}") from error


def _is_ready(pod: Any) -> bool:
    return any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or ())


def _running(pod: Any) -> int:
    """Completions that a pod is sampling."""
    ports = (port for container in pod.spec.containers for port in container.ports or ())
    port = next((port.container_port for port in ports if port.name == HEALTH_PORT), None)
    if port is None or not pod.status.pod_ip:
        return _BUSY
    connection = http.client.HTTPConnection(pod.status.pod_ip, port, timeout=1.0)
    try:
        connection.request("GET", "/metrics")
        found = _METRIC.search(connection.getresponse().read())
    except (OSError, http.client.HTTPException):
        return _BUSY
    finally:
        connection.close()
    return _BUSY if found is None else round(float(found.group(1)))
