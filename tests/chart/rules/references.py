"""What one object says of another must be so: structure checks see each object alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from tests.chart.rendering import named, of_kind
from tests.chart.rules.rule import Manifests, Rule, label, pod, pods, selects, variables


def a_workload_selects_its_own_pods(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        selector = found.owner["spec"].get("selector", {})
        if not selects(selector, found.labels):
            yield f"{found.name} selects {selector}, its pods have {found.labels}"


def a_selector_never_changes_with_the_version(manifests: Manifests) -> Iterator[str]:
    for manifest in of_kind(manifests, "Deployment", "StatefulSet"):
        for key in manifest["spec"]["selector"]["matchLabels"]:
            if key not in {f"app.kubernetes.io/{part}" for part in ("name", "instance", "component")}:
                yield f"{label(manifest)} selects by {key}"


def a_service_finds_pods_and_their_port(manifests: Manifests) -> Iterator[str]:
    for service in of_kind(manifests, "Service"):
        found = [p for p in pods(manifests) if selects({"matchLabels": service["spec"]["selector"]}, p.labels)]
        if not found:
            yield f"{label(service)} selects no pod"
        for port in service["spec"]["ports"]:
            if not all(port["targetPort"] in _ports(p.spec) for p in found):
                yield f"{label(service)} sends to port {port['targetPort']}, which its pods do not have"


def a_budget_or_policy_is_about_some_pod(manifests: Manifests) -> Iterator[str]:
    for manifest in of_kind(manifests, "PodDisruptionBudget", "NetworkPolicy"):
        spec = manifest["spec"]
        selector = spec["selector" if manifest["kind"] == "PodDisruptionBudget" else "podSelector"]
        if not any(selects(selector, p.labels) for p in pods(manifests)):
            yield f"{label(manifest)} is about no pod: {selector}"


def a_mount_has_its_volume(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        volumes = {volume["name"] for volume in found.spec.get("volumes", [])} | set(found.claims)
        for container in found.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{found.name} {container['name']} mounts {mount['name']}, volumes are {sorted(volumes)}"


def a_claim_and_an_account_are_there(manifests: Manifests) -> Iterator[str]:
    names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    for found in pods(manifests):
        if ("ServiceAccount", found.spec["serviceAccountName"]) not in names:
            yield f"{found.name} runs as {found.spec['serviceAccountName']}, which is not there"
        for volume in found.spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName", "")
            if claim.startswith("tba-") and ("PersistentVolumeClaim", claim) not in names:
                yield f"{found.name} mounts claim {claim}, which is not there"


def a_generated_secret_has_the_key_that_is_read(manifests: Manifests) -> Iterator[str]:
    made = {s["metadata"]["name"]: s["data"] for s in of_kind(manifests, "Secret")}
    for found in pods(manifests):
        for reference in _secret_references(found.spec):
            if reference["name"] in made and reference["key"] not in made[reference["name"]]:
                yield f"{found.name} reads {reference['key']} of {reference['name']}, which has none"
            if reference["name"] in {"tba-api-key", "tba-postgres"} - made.keys():
                yield f"{found.name} reads Secret {reference['name']}, which is not there"


def a_probe_asks_a_port_that_is_there(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        for container in found.containers:
            for kind in _PROBES:
                probe = container.get(kind, {})
                port = (probe.get("httpGet") or probe.get("tcpSocket") or {}).get("port")
                if port is not None and port not in {p["name"] for p in container.get("ports", [])}:
                    yield f"{found.name} {kind} asks port {port}, which {container['name']} does not have"


def what_is_scaled_is_there(manifests: Manifests) -> Iterator[str]:
    names = {m["metadata"]["name"] for m in of_kind(manifests, "Deployment")}
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject"):
        target = scaler["spec"]["scaleTargetRef"]["name"]
        if target not in names:
            yield f"{label(scaler)} scales {target}, which is no Deployment here"


def a_statefulset_has_its_service(manifests: Manifests) -> Iterator[str]:
    services = {s["metadata"]["name"] for s in of_kind(manifests, "Service")}
    for manifest in of_kind(manifests, "StatefulSet"):
        if manifest["spec"]["serviceName"] not in services:
            yield f"{label(manifest)} is governed by {manifest['spec']['serviceName']}, which is no Service here"


def a_server_that_a_pod_is_told_of_may_be_reached(manifests: Manifests) -> Iterator[str]:
    """Both ends of a connection must allow it: out of the client, into the server."""
    policies = list(of_kind(manifests, "NetworkPolicy"))
    servers = {s["metadata"]["name"]: s["spec"]["selector"] for s in of_kind(manifests, "Service")}
    for client in pods(manifests) if policies else ():
        told = " ".join(value for container in client.containers for value in variables(container).values())
        for name in servers.keys() & set(re.findall(r"\b([a-z][a-z0-9-]+):\d+", told)):
            server = next(p for p in pods(manifests) if selects({"matchLabels": servers[name]}, p.labels))
            if server.component != client.component and not _may_connect(policies, client.labels, server.labels):
                yield f"{client.name} is told of {name}, and the network policies keep it from there"


def who_asks_a_server_may_ask_for_its_name(manifests: Manifests) -> Iterator[str]:
    """Over UDP, and over TCP for long answers; at the port of the resolver's Service and at the one behind it."""
    policies = list(of_kind(manifests, "NetworkPolicy"))
    for client in pods(manifests) if policies else ():
        services = [s for s in of_kind(manifests, "Service") if not selects(_matching(s), client.labels)]
        names = "|".join(s["metadata"]["name"] for s in services)
        told = " ".join(value for container in client.containers for value in variables(container).values())
        if re.search(rf"\b({names}):\d+", told) and _RESOLVERS - _out(policies, client.labels):
            yield f"{client.name} is told of names, and the network policies keep it from the resolver"


def a_url_that_a_pod_is_told_of_may_be_reached(manifests: Manifests) -> Iterator[str]:
    """An object store or a judge at a port of its own: a closed network drops what is sent there, and it hangs."""
    policies = list(of_kind(manifests, "NetworkPolicy"))
    ours = {s["metadata"]["name"] for s in of_kind(manifests, "Service")}
    for client in pods(manifests) if policies else ():
        for name, value in (each for container in client.containers for each in variables(container).items()):
            url = re.match(r"(https?)://([^/:]+)(?::(\d+))?", value)
            if url and url[2] not in ours:
                port = int(url[3] or {"http": 80, "https": 443}[url[1]])
                if ("TCP", port) not in _out(policies, client.labels):
                    yield f"{client.name}: {name}={value}, and the network policies keep it from port {port}"


def who_has_a_token_may_reach_the_cluster_s_api(manifests: Manifests) -> Iterator[str]:
    """The Service's port, and the one behind it: networks differ in which of the two they judge."""
    policies = list(of_kind(manifests, "NetworkPolicy"))
    for client in pods(manifests) if policies else ():
        has_token = client.spec.get("automountServiceAccountToken")
        if has_token and {("TCP", 443), ("TCP", 6443)} - _out(policies, client.labels):
            yield f"{client.name} has a token, and the network policies keep it from the cluster's API"


def a_policy_opens_ports_that_its_pods_have(manifests: Manifests) -> Iterator[str]:
    for policy in of_kind(manifests, "NetworkPolicy"):
        mine = [p for p in pods(manifests) if selects(policy["spec"]["podSelector"], p.labels)]
        for rule in policy["spec"].get("ingress") or []:
            for port in rule["ports"]:
                if "endPort" not in port and not any(port["port"] in _ports(p.spec).values() for p in mine):
                    yield f"{label(policy)} opens {port['port']}, on which none of its pods listens"


_OTHERS: Final = {"matchLabels": {"": "of another namespace"}}
#: Of most clusters, of OpenShift's, of Gardener's.
_RESOLVERS: Final = frozenset((protocol, port) for protocol in ("UDP", "TCP") for port in (53, 5353, 8053))
_PROBES: Final = ("startupProbe", "livenessProbe", "readinessProbe")


def _ports(spec: dict[str, Any]) -> dict[str, int]:
    return {p["name"]: p["containerPort"] for container in spec["containers"] for p in container.get("ports", [])}


def _secret_references(spec: dict[str, Any]) -> Iterator[dict[str, str]]:
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        for entry in container.get("env", []):
            if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
                yield reference


def _may_connect(policies: Manifests, client: dict[str, str], server: dict[str, str]) -> bool:
    def opened(labels: dict[str, str], direction: str, peer: str, other: dict[str, str]) -> set[int]:
        mine = [p["spec"] for p in policies if selects(p["spec"]["podSelector"], labels)]
        rules = [rule for spec in mine for rule in spec.get(direction) or []]
        fitting = [
            r for r in rules if not r.get(peer) or any(selects(q.get("podSelector", _OTHERS), other) for q in r[peer])
        ]
        return {port["port"] for rule in fitting for port in rule["ports"]}

    return bool((opened(client, "egress", "to", server) & opened(server, "ingress", "from", client)) - {53, 8081})


def _matching(service: dict[str, Any]) -> dict[str, Any]:
    return {"matchLabels": service["spec"]["selector"]}


def _out(policies: Manifests, labels: dict[str, str]) -> set[tuple[str, int]]:
    """Protocol and port of what these pods may connect to wherever it is."""
    mine = [p["spec"] for p in policies if selects(p["spec"]["podSelector"], labels)]
    rules = [rule for spec in mine for rule in spec.get("egress") or [] if not rule.get("to")]
    return {(port.get("protocol", "TCP"), port["port"]) for rule in rules for port in rule["ports"]}


def _forget(manifests: Manifests, kind: str, name: str) -> None:
    manifests.remove(named(manifests, kind, name))


def _environment(manifests: Manifests, component: str) -> list[dict[str, Any]]:
    environment: list[dict[str, Any]] = pod(manifests, component).spec["containers"][0]["env"]
    return environment


RULES: Final = (
    Rule(a_workload_selects_its_own_pods, lambda m: pod(m, "api").labels.update({"app.kubernetes.io/component": "ap"})),
    Rule(
        a_selector_never_changes_with_the_version,
        lambda m: pod(m, "api").owner["spec"]["selector"]["matchLabels"].update({"helm.sh/chart": "tba-0.1.0"}),
    ),
    Rule(
        a_service_finds_pods_and_their_port,
        lambda m: named(m, "Service", "tba-api")["spec"]["ports"][0].update(targetPort="web"),
    ),
    Rule(
        a_budget_or_policy_is_about_some_pod,
        lambda m: named(m, "PodDisruptionBudget", "tba-buffer")["spec"]["selector"].update(matchLabels={"a": "b"}),
    ),
    Rule(a_mount_has_its_volume, lambda m: pod(m, "learner").spec["volumes"].pop(0)),
    Rule(a_claim_and_an_account_are_there, lambda m: _forget(m, "PersistentVolumeClaim", "tba-weights")),
    Rule(
        a_generated_secret_has_the_key_that_is_read,
        lambda m: named(m, "Secret", "tba-postgres").update(data={"secret": ""}),
    ),
    Rule(a_probe_asks_a_port_that_is_there, lambda m: pod(m, "buffer").spec["containers"][0]["ports"].pop()),
    Rule(
        what_is_scaled_is_there,
        lambda m: named(m, "ScaledObject", "tba-generator")["spec"]["scaleTargetRef"].update(name="tba-generators"),
        situation="keda",
    ),
    Rule(a_statefulset_has_its_service, lambda m: _forget(m, "Service", "tba-kafka")),
    Rule(
        a_server_that_a_pod_is_told_of_may_be_reached,
        lambda m: named(m, "NetworkPolicy", "tba-learner")["spec"]["egress"].pop(),
    ),
    Rule(
        who_asks_a_server_may_ask_for_its_name,
        lambda m: named(m, "NetworkPolicy", "tba-seed")["spec"]["egress"][0]["ports"].pop(),
    ),
    Rule(
        a_url_that_a_pod_is_told_of_may_be_reached,
        lambda m: next(e for e in _environment(m, "learner") if e["name"] == "AWS_ENDPOINT_URL").update(
            value="http://minio.storage:9000"
        ),
        situation="production",
    ),
    Rule(
        who_has_a_token_may_reach_the_cluster_s_api,
        lambda m: named(m, "NetworkPolicy", "tba-autoscaler")["spec"]["egress"].pop(),
    ),
    Rule(
        a_policy_opens_ports_that_its_pods_have,
        lambda m: named(m, "NetworkPolicy", "tba-api")["spec"]["ingress"][1]["ports"][0].update(port=8080),
    ),
)
