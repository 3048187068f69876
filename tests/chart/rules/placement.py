"""Where pods may go, and whether they can leave again: disks of one node, drains, who owns a volume."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from tests.chart.rendering import named, of_kind
from tests.chart.rules.rule import Manifests, Pod, Rule, label, pod, pods, selects


def a_disk_of_one_node_keeps_its_pods_on_one(manifests: Manifests) -> Iterator[str]:
    """Elsewhere a second pod waits for the disk for ever. One owner's single pod needs no such care."""
    accesses = {m["metadata"]["name"]: m["spec"]["accessModes"] for m in of_kind(manifests, "PersistentVolumeClaim")}
    mounting: dict[str, list[Pod]] = defaultdict(list)
    for found in pods(manifests):
        for volume in found.spec.get("volumes", []):
            mounting[volume.get("persistentVolumeClaim", {}).get("claimName", "")].append(found)
    for claim, found_pods in mounting.items():
        if accesses.get(claim) == ["ReadWriteOnce"] and len(found_pods) > 1:
            for one in found_pods:
                if not all(_goes_with(one, other) for other in found_pods):
                    yield f"{one.name} may go to another node than others that mount {claim}"


def the_learner_chooses_the_node_of_a_shared_disk(manifests: Manifests) -> Iterator[str]:
    """Otherwise the disk may be made where a generator fits and the learner does not, and training never starts."""
    learner = pod(manifests, "learner")
    for found in pods(manifests):
        if _goes_with(found, learner) and found.component != "learner" and not _follows(found, learner):
            yield f"{found.name} may choose a node before {learner.name} has"


def no_budget_holds_pods_that_must_leave_together(manifests: Manifests) -> Iterator[str]:
    """Those that were evicted cannot start elsewhere before the last has left, and the budget keeps the last."""
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        for found in pods(manifests):
            if selects(budget["spec"]["selector"], found.labels) and _goes_with(found, found):
                yield f"{label(budget)} holds {found.name} on a node that is drained"


def a_volume_belongs_to_its_pod_s_group(manifests: Manifests) -> Iterator[str]:
    """A new disk is root's. Group by group only where it must be: PostgreSQL refuses data that its group may write."""
    for found in pods(manifests):
        context = found.spec.get("securityContext", {})
        if context.get("fsGroup") != context.get("runAsGroup") or "fsGroup" not in context:
            yield f"{found.name} runs in group {context.get('runAsGroup')}, its volumes are {context.get('fsGroup')}'s"
        if context.get("fsGroupChangePolicy") != "OnRootMismatch":
            yield f"{found.name} gives every file on its disks to the group at each start"


def _goes_with(one: Pod, other: Pod) -> bool:
    """Whether a node must have the other, or another like it, for the one to go there."""
    return any(selects(selector, other.labels) for selector in _beside(one))


def _follows(one: Pod, other: Pod) -> bool:
    """Whether the one waits for the other: who asks for its own kind only goes anywhere if it is the first."""
    return any(selects(s, other.labels) and not selects(s, one.labels) for s in _beside(one))


def _beside(one: Pod) -> list[dict[str, Any]]:
    """Selectors of the pods that its node must have."""
    terms: list[dict[str, Any]] = (
        one.spec.get("affinity", {}).get("podAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", [])
    )
    return [term["labelSelector"] for term in terms if term["topologyKey"] == "kubernetes.io/hostname"]


def _plant_budget(manifests: Manifests) -> None:
    budget = named(manifests, "PodDisruptionBudget", "tba-buffer")
    budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] = "generator"


RULES: Final = (
    Rule(a_disk_of_one_node_keeps_its_pods_on_one, lambda m: pod(m, "generator").spec.pop("affinity")),
    Rule(
        the_learner_chooses_the_node_of_a_shared_disk,
        lambda m: (
            pod(m, "generator").spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"].pop()
        ),
    ),
    Rule(no_budget_holds_pods_that_must_leave_together, _plant_budget),
    Rule(a_volume_belongs_to_its_pod_s_group, lambda m: pod(m, "learner").spec["securityContext"].pop("fsGroup")),
)
