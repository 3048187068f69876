"""Several ranks as one learner: they must find one another, agree on how many they are, and end in time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tests.chart.rendering import named, of_kind
from tests.chart.rules.rule import Manifests, Pod, Rule, pod, pods, selects, variables

_PROBES: Final = {"startupProbe", "livenessProbe", "readinessProbe"}


def torchrun_starts_a_rank_on_each_gpu_of_each_node(manifests: Manifests) -> Iterator[str]:
    nodes = sum(found.owner["spec"]["replicas"] for found in _ranks(manifests))
    for found in _ranks(manifests):
        container = found.spec["containers"][0]
        gpus = max([1, *(int(n) for name, n in container["resources"]["limits"].items() if "/" in name)])
        told = _options(container)
        expected = (str(nodes) if nodes > 1 else None, str(gpus) if nodes * gpus > 1 else None)
        if (got := (told.get("--nnodes"), told.get("--nproc-per-node"))) != expected:
            yield f"{found.name}: nodes and ranks on each {got}, expected {expected}"


def ranks_meet_at_the_leader_before_it_is_ready(manifests: Manifests) -> Iterator[str]:
    """The leader's name must sort first, by which torchrun numbers them, and resolve although it is not ready."""
    for found in _ranks(manifests):
        told = _options(found.spec["containers"][0])
        if not (endpoint := told.get("--rdzv-endpoint")):
            continue
        host, port = endpoint.split(":")
        leader, service = host.split(".")
        meeting = named(manifests, "Service", service)["spec"]
        if not meeting.get("publishNotReadyAddresses") or int(port) not in {p["port"] for p in meeting["ports"]}:
            yield f"{found.name} meets at {endpoint}, where Service {service} does not lead in time"
        is_leader = found.component == "learner"
        if not selects({"matchLabels": meeting["selector"]}, pod(manifests, "learner").labels):
            yield f"{found.name} meets at {endpoint}, which is not the leader"
        if (f"{found.owner['metadata']['name']}-0" == leader, told.get("--local-addr") == host) != (
            is_leader,
            is_leader,
        ):
            yield f"{found.name} calls itself {told.get('--local-addr')}, the leader is {host}"
        if f"is_host={str(is_leader).lower()}" not in told["--rdzv-conf"].split(","):
            yield f"{found.name}: {told['--rdzv-conf']}"
        if not is_leader and f"{found.owner['metadata']['name']}-0" < leader:
            yield f"{found.name} sorts before {leader}, and would lead"


def probes_ask_no_rank_but_the_leader(manifests: Manifests) -> Iterator[str]:
    """Only rank 0 has a health server: a follower that is probed is killed for ever."""
    for found in _ranks(manifests):
        if found.component != "learner" and (probed := _PROBES & found.spec["containers"][0].keys()):
            yield f"{found.name} is asked by {sorted(probed)}"


def ranks_may_talk_to_one_another_and_others_not(manifests: Manifests) -> Iterator[str]:
    """They listen on ports that the system chooses: a range of them is open, and between ranks alone."""
    policies = [policy["spec"] for policy in of_kind(manifests, "NetworkPolicy")]
    ranks = list(_ranks(manifests))
    for one in ranks if policies and len(ranks) > 1 else ():
        for direction, peer in (("ingress", "from"), ("egress", "to")):
            mine = [spec for spec in policies if selects(spec["podSelector"], one.labels)]
            ranges = [r for spec in mine for r in spec.get(direction) or [] if any("endPort" in p for p in r["ports"])]
            for other in pods(manifests):
                is_open = any(selects(p["podSelector"], other.labels) for r in ranges for p in r[peer])
                if is_open != (other.component in {rank.component for rank in ranks}):
                    yield f"{one.name}: {direction} of {other.name} open: {is_open}"


def torchrun_waits_for_the_leader_to_end(manifests: Manifests) -> Iterator[str]:
    """By default it kills after 30 s, in the middle of a checkpoint."""
    for found in _ranks(manifests):
        container = found.spec["containers"][0]
        if container["args"][0].startswith("torch."):
            drain, killed = (
                float(variables(container)["TBA_GRACE_SECONDS"]),
                found.spec["terminationGracePeriodSeconds"],
            )
            if not drain < (waits := float(_options(container).get("--shutdown-timeout", 30))) < killed:
                yield f"{found.name}: drains for {drain:.0f} s, torchrun waits {waits:.0f} s, the pod {killed} s"


def _ranks(manifests: Manifests) -> Iterator[Pod]:
    return (found for found in pods(manifests) if found.component in ("learner", "learner-follower"))


def _options(container: dict[str, Any]) -> dict[str, str]:
    args = container["args"]
    return {word: args[at + 1] for at, word in enumerate(args) if word.startswith("--")}


def _replace(manifests: Manifests, component: str, before: str, after: str) -> None:
    container = pod(manifests, component).spec["containers"][0]
    container["args"] = [after if word == before else word for word in container["args"]]


RULES: Final = (
    Rule(
        torchrun_starts_a_rank_on_each_gpu_of_each_node,
        lambda m: pod(m, "learner-follower").owner["spec"].update(replicas=3),
        situation="multi-node",
    ),
    Rule(
        ranks_meet_at_the_leader_before_it_is_ready,
        lambda m: named(m, "Service", "tba-learner")["spec"].pop("publishNotReadyAddresses"),
        situation="multi-node",
    ),
    Rule(
        probes_ask_no_rank_but_the_leader,
        lambda m: (
            pod(m, "learner-follower").spec["containers"][0].update(livenessProbe={"httpGet": {"port": "health"}})
        ),
        situation="multi-node",
    ),
    Rule(
        ranks_may_talk_to_one_another_and_others_not,
        lambda m: named(m, "NetworkPolicy", "tba-learner-follower")["spec"]["ingress"].pop(),
        situation="multi-node",
    ),
    Rule(
        torchrun_waits_for_the_leader_to_end,
        lambda m: _replace(m, "learner", "--shutdown-timeout", "--max-restarts"),
        situation="multi-gpu",
    ),
)
