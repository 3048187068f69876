"""What a server refuses although its type is right: names, labels, quantities, ports, words of a closed set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from tests.chart.rendering import Manifest, named, of_kind
from tests.chart.rules.rule import Manifests, Rule, label, pod, pods

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_DNS_LABEL: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_KEY: Final = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUANTITY: Final = re.compile(r"(\d+(?:\.\d+)?)(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?")
_WORDS: Final = {
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
    "podManagementPolicy": {"OrderedReady", "Parallel"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "unhealthyPodEvictionPolicy": {"IfHealthyBudget", "AlwaysAllow"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "pathType": {"Exact", "Prefix", "ImplementationSpecific"},
}
_STATEFUL_NAME: Final = 52
_HANDLERS: Final = {"httpGet", "tcpSocket", "exec", "grpc"}


def quantity(text: object) -> float:
    """The number that a quantity means.

    Raises:
        ValueError: it is none.
    """
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is no quantity")
    scale = {"": 1.0, "m": 1e-3, "k": 1e3} | {u: 1000.0 ** (i + 2) for i, u in enumerate("MGTP")}
    scale |= {f"{u}i": 1024.0 ** (i + 1) for i, u in enumerate("KMGTP")}
    return float(match[1]) * scale[match[2] or ""]


def a_name_is_one(manifests: Manifests) -> Iterator[str]:
    for manifest in manifests:
        name = manifest["metadata"]["name"]
        rule = _DNS_LABEL if manifest["kind"] in ("Service", "Deployment", "StatefulSet", "Job", "Pod") else _NAME
        if not rule.fullmatch(name):
            yield f"{label(manifest)}: no name for its kind"
    for found in pods(manifests):
        for entry in [*found.containers, *found.spec.get("volumes", [])]:
            if not _DNS_LABEL.fullmatch(entry["name"]):
                yield f"{found.name}: {entry['name']} is no name"


def a_statefulset_leaves_room_for_its_revision(manifests: Manifests) -> Iterator[str]:
    """Its name, a hyphen and a hash of ten are a label of its pods, which a server refuses beyond 63 characters."""
    for manifest in of_kind(manifests, "StatefulSet"):
        if len(name := manifest["metadata"]["name"]) > _STATEFUL_NAME:
            yield f"{name} has {len(name)} characters"


def no_two_objects_have_one_name(manifests: Manifests) -> Iterator[str]:
    yield from (f"{name} is there {n} times" for name, n in Counter(map(label, manifests)).items() if n > 1)


def a_label_is_one(manifests: Manifests) -> Iterator[str]:
    named_labels = [(label(m), m["metadata"].get("labels", {})) for m in manifests]
    for where, labels in [*named_labels, *((p.name, p.labels) for p in pods(manifests))]:
        for key, value in labels.items():
            if not (_LABEL_KEY.fullmatch(key) and isinstance(value, str) and _LABEL_VALUE.fullmatch(value)):
                yield f"{where}: {key}={value!r} is no label"


def a_quantity_is_one(manifests: Manifests) -> Iterator[str]:
    for manifest in manifests:
        for path, value in _walk(manifest):
            is_amount = path[-2:-1] in (["requests"], ["limits"]) or path[-1:] == ["sizeLimit"]
            if is_amount and not _QUANTITY.fullmatch(str(value)):
                yield f"{label(manifest)} {'.'.join(path)}: {value!r} is no quantity"


def a_port_is_in_range_and_named(manifests: Manifests) -> Iterator[str]:
    for manifest in manifests:
        for path, value in _walk(manifest):
            if path[-1] in ("port", "containerPort", "targetPort") and isinstance(value, int) and not 0 < value < 65536:
                yield f"{label(manifest)} {'.'.join(path)}: {value} is no port"
        for name in _port_names(manifest):
            if name is None or len(name) > 15:
                yield f"{label(manifest)}: one of several ports is called {name}"


def a_word_of_a_closed_set_is_in_it(manifests: Manifests) -> Iterator[str]:
    for manifest in manifests:
        for path, value in _walk(manifest):
            if path[-1] in _WORDS and value not in _WORDS[path[-1]]:
                yield f"{label(manifest)} {'.'.join(path)}: {value!r}, expected one of {sorted(_WORDS[path[-1]])}"


def a_pod_restarts_as_its_owner_can_take(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        policy, is_job = found.spec.get("restartPolicy", "Always"), found.owner["kind"] == "Job"
        if found.owner["kind"] != "Pod" and is_job == (policy == "Always"):
            yield f"{found.name} restarts {policy}"


def an_image_is_named_and_never_latest(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        for container in found.containers:
            image = container.get("image", "")
            if not re.fullmatch(r"[a-z0-9][\w./:-]*(:[\w.-]+|@sha256:[a-f0-9]{64})", image) or image.endswith(
                ":latest"
            ):
                yield f"{found.name} {container['name']}: image {image!r}"


def a_probe_has_one_handler(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        for container in found.containers:
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                if kind in container and len(container[kind].keys() & _HANDLERS) != 1:
                    yield f"{found.name} {kind}: {sorted(container[kind].keys() & _HANDLERS)}"


def no_field_is_said_and_left_empty(manifests: Manifests) -> Iterator[str]:
    """Some servers and tools take it for nothing at all, others for a list or an object with nothing in it."""
    for manifest in manifests:
        yield from (f"{label(manifest)} {'.'.join(path)} is null" for path, value in _walk(manifest) if value is None)


def a_variable_is_set_once(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        for container in found.containers:
            for name, n in Counter(entry["name"] for entry in container.get("env", [])).items():
                if n > 1 or not _VARIABLE.fullmatch(name):
                    yield f"{found.name} {container['name']}: {name} is set {n} times"
            for entry in container.get("env", []):
                if ("value" in entry) == ("valueFrom" in entry) or not isinstance(entry.get("value", ""), str):
                    yield f"{found.name} {container['name']}: {entry['name']} has no value, or one that is no text"


def a_mount_has_a_place_of_its_own(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        for container in found.containers:
            places = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            for place, n in Counter(places).items():
                if n > 1 or not place.startswith("/"):
                    yield f"{found.name} {container['name']}: {n} mounts at {place}"


def _walk(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[list[str], Any]]:
    """Every leaf with the keys that lead to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(inner, (*path, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, path)
    elif path:
        yield list(path), value


def _port_names(manifest: Manifest) -> Iterator[str | None]:
    for found in pods([manifest]):
        for container in found.containers:
            yield from (port.get("name") for port in container.get("ports", []))
    for service in of_kind([manifest], "Service"):
        yield from (port.get("name") for port in service["spec"]["ports"])


def _main(manifests: Manifests, component: str) -> dict[str, Any]:
    container: dict[str, Any] = pod(manifests, component).spec["containers"][0]
    return container


RULES: Final = (
    Rule(a_name_is_one, lambda m: named(m, "Service", "tba-api")["metadata"].update(name="tba_api")),
    Rule(
        a_statefulset_leaves_room_for_its_revision,
        lambda m: named(m, "StatefulSet", "tba-learner")["metadata"].update(name="tba-learner" + "r" * 42),
    ),
    Rule(no_two_objects_have_one_name, lambda m: m.append(named(m, "Service", "tba-api"))),
    Rule(a_label_is_one, lambda m: pod(m, "api").labels.update({"app.kubernetes.io/version": "v 1"})),
    Rule(a_quantity_is_one, lambda m: _main(m, "api")["resources"]["limits"].update(memory="1GB")),
    Rule(a_port_is_in_range_and_named, lambda m: _main(m, "api")["ports"][0].update(containerPort=80_000)),
    Rule(a_word_of_a_closed_set_is_in_it, lambda m: _main(m, "api").update(imagePullPolicy="Sometimes")),
    Rule(a_pod_restarts_as_its_owner_can_take, lambda m: pod(m, "migrate").spec.update(restartPolicy="Always")),
    Rule(an_image_is_named_and_never_latest, lambda m: _main(m, "api").update(image="tba:latest")),
    Rule(a_probe_has_one_handler, lambda m: _main(m, "api")["livenessProbe"].update(tcpSocket={"port": "http"})),
    Rule(
        no_field_is_said_and_left_empty,
        lambda m: named(m, "NetworkPolicy", "tba-seed")["spec"].update(ingress=None),
    ),
    Rule(a_variable_is_set_once, lambda m: _main(m, "api")["env"].append({"name": "TBA_RUN_ID", "value": "other"})),
    Rule(a_mount_has_a_place_of_its_own, lambda m: _main(m, "api")["volumeMounts"][0].update(mountPath="tmp")),
)
