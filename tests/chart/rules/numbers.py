"""Numbers that contradict one another, or what the process does with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tba_common.topics import topics_for
from tests.chart.rendering import named, of_kind
from tests.chart.rules.rule import Manifests, Rule, label, pod, pods, variables
from tests.chart.rules.syntax import quantity


def a_limit_is_not_below_its_request(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        for container in found.containers:
            resources = container.get("resources", {})
            for name, limit in resources.get("limits", {}).items():
                if quantity(limit) < quantity(resources.get("requests", {}).get(name, 0)):
                    yield f"{found.name} {container['name']}: {name} limited to {limit}, below what it requests"


def every_container_says_what_it_needs(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        for container in found.containers:
            resources = container.get("resources", {})
            needs = {f"requests.{name}" for name in resources.get("requests", {})}
            needs |= {f"limits.{name}" for name in resources.get("limits", {})}
            if missing := {"requests.cpu", "requests.memory", "limits.memory"} - needs:
                yield f"{found.name} {container['name']} does not say {sorted(missing)}"


def a_gpu_is_requested_whole_and_limited_alike(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        for container in found.containers:
            resources = container.get("resources", {})
            for name in {n for kind in resources.values() for n in kind if "/" in n}:
                asked = {str(resources.get(kind, {}).get(name)) for kind in ("requests", "limits")}
                if len(asked) > 1 or not asked.pop().isdecimal():
                    yield f"{found.name}: {name} {resources}"


def a_rolling_update_can_move(manifests: Manifests) -> Iterator[str]:
    for manifest in of_kind(manifests, "Deployment"):
        rolling = manifest["spec"].get("strategy", {}).get("rollingUpdate", {})
        if rolling and not any(quantity(rolling.get(kind, 1)) for kind in ("maxSurge", "maxUnavailable")):
            yield f"{label(manifest)} may neither remove a pod nor add one"


def an_autoscaler_has_a_range_and_a_target(manifests: Manifests) -> Iterator[str]:
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject"):
        spec = scaler["spec"]
        low = spec.get("minReplicas", spec.get("minReplicaCount"))
        high = spec.get("maxReplicas", spec.get("maxReplicaCount"))
        if not (0 <= low <= high and high >= 1):
            yield f"{label(scaler)} scales between {low} and {high}"
        for metric in spec.get("metrics", []):
            if not any(key.startswith(("average", "value")) for key in metric["external"]["target"]):
                yield f"{label(scaler)} has a metric without a target"


def an_autoscaler_alone_says_how_many(manifests: Manifests) -> Iterator[str]:
    """A count in the manifest would undo, at each upgrade, what the autoscaler found."""
    is_scaled = any(of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject"))
    is_scaled |= any(p.component == "autoscaler" for p in pods(manifests))
    for manifest in of_kind(manifests, "Deployment", "StatefulSet"):
        leaves_out = "replicas" not in manifest["spec"]
        if leaves_out != (is_scaled and manifest["metadata"]["name"].endswith("-generator")):
            yield f"{label(manifest)} {'leaves out' if leaves_out else 'states'} its number of pods"


def a_pod_outlives_its_process(manifests: Manifests) -> Iterator[str]:
    """From SIGTERM on: what runs before it, and the time that the process takes to hand back its work."""
    for found in pods(manifests):
        container = found.spec["containers"][0]
        before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        drain = float(variables(container).get("TBA_GRACE_SECONDS", 0)) + before
        if (killed := found.spec["terminationGracePeriodSeconds"]) <= drain:
            yield f"{found.name}: killed after {killed} s, drains for {drain:.0f} s"


def a_start_may_take_minutes_on_a_busy_node(manifests: Manifests) -> Iterator[str]:
    """A process that is killed while it starts, because it is slow, starts again as slowly."""
    for found in pods(manifests):
        for container in found.containers:
            if probe := container.get("startupProbe"):
                seconds = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
                if seconds < _START_SECONDS or probe.get("timeoutSeconds", 1) < _ANSWER_SECONDS:
                    yield f"{found.name} has {seconds} s to start, {probe.get('timeoutSeconds', 1)} s for each answer"


def a_rollout_that_waits_is_not_taken_for_a_failed_one(manifests: Manifests) -> Iterator[str]:
    """`helm --wait` gives up on a Deployment past its deadline, be it that an image is still pulled somewhere."""
    for manifest in of_kind(manifests, "Deployment"):
        seconds = manifest["spec"].get("progressDeadlineSeconds", 600)
        if seconds < _WAIT_SECONDS:
            yield f"{label(manifest)} has failed after {seconds} s"


def no_job_is_over_before_it_could_start(manifests: Manifests) -> Iterator[str]:
    """One that is over never starts again, and an upgrade that changes nothing of it makes no other."""
    for job in of_kind(manifests, "Job"):
        if "activeDeadlineSeconds" in job["spec"]:
            yield f"{label(job)} is over after {job['spec']['activeDeadlineSeconds']} s, whatever it waits for"


def one_learner_and_never_two(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        if found.component == "learner" and (found.owner["kind"], found.owner["spec"]["replicas"]) != (
            "StatefulSet",
            1,
        ):
            yield f"{found.name} has {found.owner['spec']['replicas']} pods, and may overlap with itself"


def a_share_is_of_all_siblings(manifests: Manifests) -> Iterator[str]:
    """With fixed shares, a partition of a pod that is not there is read by nobody."""
    for found in pods(manifests):
        told = variables(found.spec["containers"][0])
        if told.get("TBA_SHARING") == "static":
            replicas = found.owner["spec"].get("replicas")
            if found.owner["kind"] != "StatefulSet" or told["TBA_PROCESS_COUNT"] != str(replicas):
                yield f"{found.name}: {replicas} pods, each with one of {told['TBA_PROCESS_COUNT']} shares"


def no_budget_keeps_a_node_from_being_drained(manifests: Manifests) -> Iterator[str]:
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        may_go = budget["spec"].get("maxUnavailable", 0)
        if not may_go or "learner" in budget["spec"]["selector"]["matchLabels"].values():
            yield f"{label(budget)} lets {may_go} go"


def the_broker_s_disk_holds_what_its_topics_keep(manifests: Manifests) -> Iterator[str]:
    """A broker whose disk is full ends, and does not start again."""
    for found in pods(manifests):
        told = variables(found.spec["containers"][0])
        if "KAFKA_LOG_DIRS" in told:
            scorers = variables(pod(manifests, "buffer").spec["containers"][0])["TBA_SCORERS"].split(",")
            partitions = sum(topic.partitions for topic in topics_for(scorers))
            kept = int(told.get("KAFKA_LOG_RETENTION_BYTES", 1e12)) + int(told.get("KAFKA_LOG_SEGMENT_BYTES", 1 << 30))
            (claim,) = found.owner["spec"]["volumeClaimTemplates"]
            size = claim["spec"]["resources"]["requests"]["storage"]
            if partitions * kept > quantity(size):
                yield f"{found.name} keeps {partitions} x {kept} bytes on a disk of {size}"


_START_SECONDS: Final = 300
_ANSWER_SECONDS: Final = 5
_WAIT_SECONDS: Final = 3600  # the longest that a document says to wait


def _main(manifests: Manifests, component: str) -> dict[str, Any]:
    container: dict[str, Any] = pod(manifests, component).spec["containers"][0]
    return container


RULES: Final = (
    Rule(a_limit_is_not_below_its_request, lambda m: _main(m, "api")["resources"]["limits"].update(memory="1Mi")),
    Rule(every_container_says_what_it_needs, lambda m: _main(m, "api")["resources"].pop("limits")),
    Rule(
        a_gpu_is_requested_whole_and_limited_alike,
        lambda m: _main(m, "learner")["resources"]["requests"].update({"nvidia.com/gpu": "2"}),
        situation="gpu",
    ),
    Rule(
        a_rolling_update_can_move,
        lambda m: pod(m, "api").owner["spec"]["strategy"]["rollingUpdate"].update(maxSurge=0),
    ),
    Rule(
        an_autoscaler_has_a_range_and_a_target,
        lambda m: named(m, "HorizontalPodAutoscaler", "tba-generator")["spec"].update(minReplicas=9),
        situation="hpa",
    ),
    Rule(an_autoscaler_alone_says_how_many, lambda m: pod(m, "generator").owner["spec"].update(replicas=1)),
    Rule(a_pod_outlives_its_process, lambda m: pod(m, "generator").spec.update(terminationGracePeriodSeconds=30)),
    Rule(
        a_start_may_take_minutes_on_a_busy_node, lambda m: _main(m, "api")["startupProbe"].update(failureThreshold=24)
    ),
    Rule(
        a_rollout_that_waits_is_not_taken_for_a_failed_one,
        lambda m: pod(m, "api").owner["spec"].pop("progressDeadlineSeconds"),
    ),
    Rule(
        no_job_is_over_before_it_could_start,
        lambda m: pod(m, "migrate").owner["spec"].update(activeDeadlineSeconds=3600),
    ),
    Rule(
        the_broker_s_disk_holds_what_its_topics_keep,
        lambda m: next(e for e in _main(m, "kafka")["env"] if e["name"] == "KAFKA_LOG_SEGMENT_BYTES").update(
            value=str(1 << 30)
        ),
    ),
    Rule(one_learner_and_never_two, lambda m: pod(m, "learner").owner["spec"].update(replicas=2)),
    Rule(a_share_is_of_all_siblings, lambda m: pod(m, "generator").owner["spec"].update(replicas=3), situation="cpu"),
    Rule(
        no_budget_keeps_a_node_from_being_drained,
        lambda m: named(m, "PodDisruptionBudget", "tba-api")["spec"].update(maxUnavailable=0),
    ),
)
