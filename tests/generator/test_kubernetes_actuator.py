"""The door to Kubernetes against an API server over HTTP: one Deployment's scale, one leader, and nothing else."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Final

import pytest

from services.generator.autoscaler import NotAllowed, Unreachable
from services.generator.kubernetes_actuator import DELETION_COST, REQUIRED_RULES, KubernetesActuator, connect
from services.generator.scaling_values import Decision, Fleet
from tests.generator.kubernetes_api import HPAS, LEASES, NAMESPACE, PODS, SCALED, Cluster, cluster

NAME: Final = "tba-generator"
LEASE: Final = "tba-autoscaler"
LEASE_SECONDS: Final = 15
UP: Final = Decision(3, "starving", "the learner waits 20% of the time; 3 needed")
DOWN: Final = Decision(1, "surplus", "1 would do")


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def kubernetes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for module in ("actuator", "lease"):  # the machine may stall
        monkeypatch.setattr(f"services.generator.kubernetes_{module}._TIMEOUT_SECONDS", 60.0)
    with cluster() as found:
        found.deployment(NAME, 2)
        found.pods("a", "b")
        other = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
        found.put(HPAS, "of-another", spec={"scaleTargetRef": other, "maxReplicas": 3})
        yield found


@pytest.fixture
def clock() -> Clock:
    return Clock()


def replica(kubernetes: Cluster, clock: Clock, identity: str = "one") -> KubernetesActuator:
    return KubernetesActuator(
        connect(kubernetes.url),
        namespace=NAMESPACE,
        deployment=NAME,
        lease=LEASE,
        identity=identity,
        lease_seconds=LEASE_SECONDS,
        clock=clock,
    )


def test_the_leader_scales_the_deployment_and_says_so(kubernetes: Cluster, clock: Clock) -> None:
    actuator = replica(kubernetes, clock)
    assert actuator.lead()
    fleet = actuator.fleet()
    assert fleet == Fleet(replicas=2, ready=2)
    actuator.scale(UP, fleet)
    assert kubernetes.replicas(NAME) == 3
    assert actuator.fleet() == Fleet(replicas=3, ready=2)
    (event,) = kubernetes.events()
    assert (event["reason"], event["note"]) == ("Starving", f"2 -> 3: {UP.sentence}")
    assert event["regarding"]["name"] == NAME
    assert "." in event["eventTime"]  # a MicroTime without a fraction is refused


def test_pods_that_are_not_ready_or_leave_are_not_counted_as_ready(kubernetes: Cluster, clock: Clock) -> None:
    kubernetes.pods("b", ready=False)
    actuator = replica(kubernetes, clock)
    assert actuator.fleet() == Fleet(replicas=2, ready=1)


def test_a_scale_that_somebody_changed_meanwhile_is_not_overwritten(kubernetes: Cluster, clock: Clock) -> None:
    actuator, person = replica(kubernetes, clock), replica(kubernetes, clock)
    assert actuator.lead()
    assert person.lead()  # the same identity: only a way to write
    fleet = actuator.fleet()
    person.scale(Decision(7, "override", "a person"), person.fleet())
    with pytest.raises(NotAllowed, match=f"to scale Deployment {NAME}: 409"):
        actuator.scale(UP, fleet)
    assert kubernetes.replicas(NAME) == 7


def test_what_the_role_does_not_allow_is_named(kubernetes: Cluster, clock: Clock) -> None:
    kubernetes.server.denied = {("apps", "deployments/scale", "patch", NAME)}
    actuator = replica(kubernetes, clock)
    assert actuator.lead()
    with pytest.raises(NotAllowed, match=f"to scale Deployment {NAME}: 403 Forbidden"):
        actuator.scale(UP, actuator.fleet())
    assert kubernetes.replicas(NAME) == 2


def test_an_outage_of_the_server_is_told_and_the_leader_leads_until_its_lease_may_be_over(
    kubernetes: Cluster, clock: Clock
) -> None:
    actuator = replica(kubernetes, clock)
    assert actuator.lead()
    kubernetes.server.is_down = True
    clock.now += 5
    assert actuator.lead()
    with pytest.raises(Unreachable, match="the scale of Deployment tba-generator: 503"):
        actuator.fleet()
    clock.now += 6  # more than two thirds of the lease
    with pytest.raises(Unreachable, match="the Lease: 503"):
        actuator.lead()
    kubernetes.server.is_down = False
    assert actuator.lead()


def test_nobody_there_is_an_outage_too(clock: Clock) -> None:
    with cluster() as gone:
        pass
    with pytest.raises(Unreachable, match="the Lease: "):
        replica(gone, clock).lead()


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        (HPAS, {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME}, "maxReplicas": 3}),
        (SCALED, {"scaleTargetRef": {"name": NAME}}),
    ],
)
def test_a_deployment_that_another_autoscaler_targets_is_left_alone(
    kubernetes: Cluster, clock: Clock, kind: object, spec: dict[str, object]
) -> None:
    kubernetes.put(kind, "rival", spec=spec)
    actuator = replica(kubernetes, clock)
    assert actuator.lead()
    with pytest.raises(NotAllowed, match=f"rival targets Deployment {NAME} too: remove it, or set TBA_DRY_RUN"):
        actuator.scale(UP, actuator.fleet())
    assert kubernetes.replicas(NAME) == 2


def test_an_autoscaler_of_another_deployment_is_no_rival(kubernetes: Cluster, clock: Clock) -> None:
    kubernetes.put(SCALED, "other", spec={"scaleTargetRef": {"name": "web"}})
    actuator = replica(kubernetes, clock)
    assert actuator.lead()
    actuator.scale(UP, actuator.fleet())
    assert kubernetes.replicas(NAME) == 3


def serving(running: int) -> HTTPServer:
    """A generator's /metrics."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"# TYPE x gauge\ntba_generator_running_completions {running}.0\n".encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


def test_before_one_goes_each_pod_is_priced_by_what_it_holds(
    kubernetes: Cluster, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = partial(http.client.HTTPConnection, timeout=60.0)
    monkeypatch.setattr("http.client.HTTPConnection", lambda host, port, *, timeout: patient(host, port))
    idle, busy = serving(0), serving(96)
    kubernetes.pods("a", "b", ports={"a": busy.server_port, "b": idle.server_port})
    kubernetes.pods("silent")
    kubernetes.pods("loading", ready=False)
    actuator = replica(kubernetes, clock)
    assert actuator.lead()
    actuator.scale(DOWN, actuator.fleet())
    for server in (idle, busy):
        server.shutdown()
        server.server_close()
    costs = {name: kubernetes.get(PODS, name)["metadata"]["annotations"] for name in ("a", "b", "silent", "loading")}
    assert costs == {
        "a": {DELETION_COST: "96"},
        "b": {DELETION_COST: "0"},
        "silent": {DELETION_COST: "1000000"},
        "loading": {DELETION_COST: "0"},
    }


def test_of_two_replicas_one_decides_and_a_dead_one_is_replaced_within_twenty_seconds(
    kubernetes: Cluster, clock: Clock
) -> None:
    one, two = replica(kubernetes, clock, "one"), replica(kubernetes, clock, "two")
    for _ in range(20):
        assert (one.lead(), two.lead()) == (True, False)
        clock.now += 2
    died_at = clock.now  # one does no more
    while not two.lead():
        assert died_at == clock.now or clock.now - died_at < 20
        clock.now += 2
    assert clock.now - died_at < 20
    assert kubernetes.get(LEASES, LEASE)["spec"]["holderIdentity"] == "two"
    assert kubernetes.get(LEASES, LEASE)["spec"]["leaseTransitions"] == 1
    assert not one.lead()  # it comes back, and is none any more
    with pytest.raises(NotAllowed, match="the Lease may be another's by now"):
        one.scale(UP, one.fleet())
    assert kubernetes.replicas(NAME) == 2


def test_who_slept_through_its_lease_does_not_write(kubernetes: Cluster, clock: Clock) -> None:
    actuator = replica(kubernetes, clock)
    assert actuator.lead()
    fleet = actuator.fleet()
    clock.now += LEASE_SECONDS
    with pytest.raises(NotAllowed, match="the Lease may be another's by now"):
        actuator.scale(UP, fleet)
    assert kubernetes.replicas(NAME) == 2


def test_of_two_who_take_a_free_lease_at_once_one_gets_it(kubernetes: Cluster, clock: Clock) -> None:
    actuators = [replica(kubernetes, clock, str(number)) for number in range(4)]
    for _ in range(5):
        clock.now += 2 * LEASE_SECONDS
        for actuator in actuators:
            actuator.lead()  # everybody sees it unchanged for long
        clock.now += 2 * LEASE_SECONDS
        with ThreadPoolExecutor(len(actuators)) as pool:
            leading = list(pool.map(KubernetesActuator.lead, actuators))
        assert leading.count(True) == 1


def test_who_leaves_lets_another_lead_at_once(kubernetes: Cluster, clock: Clock) -> None:
    one, two = replica(kubernetes, clock, "one"), replica(kubernetes, clock, "two")
    assert one.lead()
    assert not two.lead()
    one.close()
    assert two.lead()


def test_it_needs_exactly_the_rules_that_it_declares(kubernetes: Cluster, clock: Clock) -> None:
    actuator = replica(kubernetes, clock)
    for decision in (UP, DOWN):
        assert actuator.lead()
        actuator.scale(decision, actuator.fleet())
    actuator.close()
    declared = {(g, kind, verb, name.format(deployment=NAME, lease=LEASE)) for g, kind, verb, name in REQUIRED_RULES}
    assert kubernetes.server.asked == declared
