"""What a pod may do: the Pod Security Standard "restricted", a network closed by default, secrets kept as such."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from tests.chart.rendering import NAMESPACE, ROOT, named, of_kind
from tests.chart.rules.rule import Manifests, Rule, label, pod, pods, selects, variables

_SECRET: Final = re.compile(r"(PASSWORD|SECRET|TOKEN|API_KEY|ACCESS_KEY)(?!.*(FILE|TOKENS))")
_VOLUMES: Final = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"}
_CLUSTER_WIDE: Final = {"PriorityClass"}
#: Settings that name a directory which the process writes to.
_DIRECTORIES: Final = {"TBA_CHECKPOINT_DIRECTORY", "TBA_WEIGHTS_CACHE_DIRECTORY"}


def every_pod_is_restricted(manifests: Manifests) -> Iterator[str]:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards, level restricted."""
    for found in pods(manifests):
        spec, context = found.spec, found.spec.get("securityContext", {})
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(key):
                yield f"{found.name}: {key}"
        for volume in spec.get("volumes", []):
            if not volume.keys() & (_VOLUMES | {"secret"}):
                yield f"{found.name}: volume {volume['name']} is of a kind that is not allowed"
        if not (context.get("runAsNonRoot") and context.get("runAsUser", 0) > 0):
            yield f"{found.name} may run as root"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{found.name} has no seccomp profile"
        for container in found.containers:
            yield from (f"{found.name} {container['name']}: {fault}" for fault in _unrestricted(container))


def _unrestricted(container: dict[str, Any]) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield f"capabilities {context.get('capabilities')}"
    if context.get("privileged") or context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
        yield "is privileged or root"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield "takes a port of its node"


def no_probe_or_hook_asks_another_host(manifests: Manifests) -> Iterator[str]:
    """Part of the standard since Kubernetes 1.34: the kubelet would ask in the node's name."""
    for found in pods(manifests):
        for container in found.containers:
            probes = {kind: container.get(kind, {}) for kind in ("startupProbe", *_PROBES)}
            for kind, probe in (probes | container.get("lifecycle", {})).items():
                if any("host" in probe.get(handler, {}) for handler in ("httpGet", "tcpSocket")):
                    yield f"{found.name} {container['name']}: {kind} names a host"


def no_container_writes_to_its_image(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        for container in found.containers:
            if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
                yield f"{found.name} {container['name']} can write to its root file system"


def what_is_written_lies_on_a_volume(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        for container in found.containers:
            places = [m["mountPath"] for m in container.get("volumeMounts", []) if not m.get("readOnly")]
            for name, value in variables(container).items():
                if name in _DIRECTORIES and not any(value.startswith(f"{place}/") for place in places):
                    yield f"{found.name} {container['name']}: {name}={value} lies on none of {places}"


def what_the_image_writes_lies_on_a_volume(manifests: Manifests) -> Iterator[str]:
    """Home, and the caches of libraries, where the Dockerfile says that they are; and temporary files."""
    image = (ROOT / "deploy/Dockerfile").read_text()
    folders = {"/tmp/x", *re.findall(r"\b[A-Z_]+=(/var/[\w/]+)", image)}  # only its name is looked at
    for found in pods(manifests):
        for container in found.containers:
            if "args" in container:
                places = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
                for folder in folders:
                    if not any(f"{folder}/".startswith(f"{place}/") for place in places):
                        yield f"{found.name} {container['name']}: {folder} lies on none of {places}"


def the_cluster_s_api_is_for_the_autoscaler_alone(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        if found.spec.get("automountServiceAccountToken") is not (found.component == "autoscaler"):
            yield f"{found.name}: token mounted: {found.spec.get('automountServiceAccountToken')}"
    for account in of_kind(manifests, "ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"{label(account)} mounts its token by default"


def a_secret_is_never_written_out(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        for container in found.containers:
            for name, value in variables(container).items():
                if value and (_SECRET.search(name) or re.search(r"://[^/@\s]*:[^/@\s]+@", value)):
                    yield f"{found.name} {container['name']}: {name} is written out"
    for config in of_kind(manifests, "ConfigMap"):
        if any(_SECRET.search(key.upper()) for key in config.get("data", {})):
            yield f"{label(config)} holds what looks like a secret"


def no_service_becomes_a_setting(manifests: Manifests) -> Iterator[str]:
    """A Service called tba-kafka would put TBA_KAFKA_... into every pod that links to services."""
    yield from (
        f"{p.name} has links to services" for p in pods(manifests) if p.spec.get("enableServiceLinks") is not False
    )


def everything_lies_in_the_release_s_namespace(manifests: Manifests) -> Iterator[str]:
    for manifest in manifests:
        is_ours = "app.kubernetes.io/managed-by" in manifest["metadata"].get("labels", {})
        namespace = manifest["metadata"].get("namespace")
        if is_ours and namespace != (None if manifest["kind"] in _CLUSTER_WIDE else NAMESPACE):
            yield f"{label(manifest)} lies in {namespace}"


def the_network_is_closed_and_opened_by_component(manifests: Manifests) -> Iterator[str]:
    policies = {p["metadata"]["name"]: p["spec"] for p in of_kind(manifests, "NetworkPolicy")}
    deny = next((spec for name, spec in policies.items() if name.endswith("default-deny")), None)
    for found in pods(manifests):
        if deny is None or not selects(deny["podSelector"], found.labels) or deny.keys() & {"ingress", "egress"}:
            yield f"{found.name}: no policy closes its network"
        own = {"app.kubernetes.io/component": found.component}
        if not any(own.items() <= spec["podSelector"]["matchLabels"].items() for spec in policies.values()):
            yield f"{found.name}: no policy says what its component needs"


def an_opening_to_the_outside_names_its_ports(manifests: Manifests) -> Iterator[str]:
    for policy in of_kind(manifests, "NetworkPolicy"):
        for direction in ("ingress", "egress"):
            for rule in policy["spec"].get(direction) or []:
                if not rule.get("ports"):
                    yield f"{label(policy)} {direction}: every port"


def what_was_learned_outlives_the_release(manifests: Manifests) -> Iterator[str]:
    for manifest in of_kind(manifests, "PersistentVolumeClaim", "Secret"):
        if manifest["metadata"].get("annotations", {}).get("helm.sh/resource-policy") != "keep":
            yield f"{label(manifest)} goes with the release"


def alive_means_that_its_own_loop_turns(manifests: Manifests) -> Iterator[str]:
    """A probe that asked Kafka or Postgres would kill every process when one server is away."""
    for found in pods(manifests):
        container = found.spec["containers"][0]
        is_ours = container.get("args", [""])[0].startswith(("services.", "tba_cli.local", "torch."))
        if is_ours and found.component != "learner-follower" and found.owner["kind"] != "Job":
            asked = {kind: container.get(kind, {}).get("httpGet", {}).get("path") for kind in _PROBES}
            if asked != {"livenessProbe": "/healthz", "readinessProbe": "/readyz"} or "startupProbe" not in container:
                yield f"{found.name}: {asked}"


_PROBES: Final = ("livenessProbe", "readinessProbe")


def _main(manifests: Manifests, component: str) -> dict[str, Any]:
    container: dict[str, Any] = pod(manifests, component).spec["containers"][0]
    return container


RULES: Final = (
    Rule(every_pod_is_restricted, lambda m: _main(m, "kafka")["securityContext"].pop("allowPrivilegeEscalation")),
    Rule(
        no_probe_or_hook_asks_another_host,
        lambda m: _main(m, "api")["readinessProbe"]["httpGet"].update(host="10.0.0.1"),
    ),
    Rule(no_container_writes_to_its_image, lambda m: _main(m, "api")["securityContext"].pop("readOnlyRootFilesystem")),
    Rule(what_is_written_lies_on_a_volume, lambda m: _main(m, "learner").update(volumeMounts=[])),
    Rule(what_the_image_writes_lies_on_a_volume, lambda m: _main(m, "api")["volumeMounts"].pop()),
    Rule(
        the_cluster_s_api_is_for_the_autoscaler_alone,
        lambda m: pod(m, "api").spec.update(automountServiceAccountToken=True),
    ),
    Rule(
        a_secret_is_never_written_out,
        lambda m: _main(m, "api")["env"].append({"name": "U", "value": "postgresql://tba:sesame@host/tba"}),
    ),
    Rule(no_service_becomes_a_setting, lambda m: pod(m, "api").spec.pop("enableServiceLinks")),
    Rule(
        everything_lies_in_the_release_s_namespace,
        lambda m: named(m, "Service", "tba-api")["metadata"].update(namespace="default"),
    ),
    Rule(
        the_network_is_closed_and_opened_by_component,
        lambda m: m.remove(named(m, "NetworkPolicy", "tba-buffer")),
    ),
    Rule(
        an_opening_to_the_outside_names_its_ports,
        lambda m: named(m, "NetworkPolicy", "tba-api")["spec"]["egress"].append({"to": []}),
    ),
    Rule(
        what_was_learned_outlives_the_release,
        lambda m: named(m, "Secret", "tba-api-key")["metadata"].pop("annotations"),
    ),
    Rule(
        alive_means_that_its_own_loop_turns,
        lambda m: _main(m, "buffer")["livenessProbe"]["httpGet"].update(path="/readyz"),
    ),
)
