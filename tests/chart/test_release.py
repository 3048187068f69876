"""A release as a whole: what an upgrade keeps and replaces, what the autoscaler may do, how pods are placed."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from helm_python import HelmError

from services.generator.kubernetes_actuator import HEALTH_PORT, REQUIRED_RULES
from tests.chart.rendering import CHART, NAMESPACE, ROOT, Manifest, manifests_of, named, of_kind, render, values_of
from tests.chart.rules.references import a_url_that_a_pod_is_told_of_may_be_reached
from tests.chart.rules.rule import Pod, pod, pods, selects, variables
from tests.chart.rules.syntax import a_label_is_one, quantity


def job_names(values: dict[str, Any]) -> set[str]:
    return {job["metadata"]["name"] for job in of_kind(render(values), "Job")}


def granted(role: Manifest) -> set[tuple[str, str, str, str]]:
    """A role as (group, resource, verb, name), one for each thing that it lets do."""
    return {
        (group, resource, verb, name)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", ["*"])
    }


def requested(found: Pod, resource: str) -> float:
    """What a scheduler sets aside for a pod: init containers run one by one, before the others."""

    def of(container: dict[str, Any]) -> float:
        return quantity(container["resources"]["requests"][resource])

    together = sum(map(of, found.spec["containers"]))
    return max([together, *map(of, found.spec.get("initContainers", []))])


def test_the_autoscaler_may_do_what_it_calls_and_nothing_else() -> None:
    names = {"deployment": "tba-generator", "lease": "tba-autoscaler"}
    calls = {(group, resource, verb, name.format(**names)) for group, resource, verb, name in REQUIRED_RULES}
    assert granted(named(manifests_of("default"), "Role", "tba-autoscaler")) == calls


def test_an_autoscaler_that_others_follow_changes_nothing_itself() -> None:
    for situation, is_dry in {"default": None, "keda": "true", "hpa": "true"}.items():
        assert variables(pod(manifests_of(situation), "autoscaler").spec["containers"][0]).get("TBA_DRY_RUN") == is_dry


def test_the_autoscaler_is_told_what_it_scales_and_within_which_limits() -> None:
    for situation in ("default", "keda", "hpa"):
        container = pod(manifests_of(situation), "autoscaler").spec["containers"][0]
        told = variables(container)
        assert told["TBA_API_URL"] == "http://tba-api:8000"
        assert (told["TBA_DEPLOYMENT"], told["TBA_LEASE"], told["TBA_NAMESPACE"]) == (
            named(manifests_of(situation), "Deployment", "tba-generator")["metadata"]["name"],
            "tba-autoscaler",
            NAMESPACE,
        )
        limits = {"min": 1, "max": 4} | values_of(situation).get("generator", {}).get("autoscaling", {})
        assert (told["TBA_MIN_REPLICAS"], told["TBA_MAX_REPLICAS"]) == (str(limits["min"]), str(limits["max"]))
        (key,) = [entry for entry in container["env"] if entry["name"] == "TBA_API_KEY"]
        assert key["valueFrom"]["secretKeyRef"] == {"name": "tba-api-key", "key": "api-key"}


def test_the_autoscaler_reaches_the_health_port_of_every_generator() -> None:
    situations: list[dict[str, Any]] = [{}, {"networkPolicy": {"metricsFrom": []}}, values_of("production")]
    for values in situations:
        manifests = render(values)
        generator = pod(manifests, "generator")
        ports = {port["name"]: port["containerPort"] for port in generator.spec["containers"][0]["ports"]}
        open_to = named(manifests, "NetworkPolicy", "tba-generator")["spec"]["ingress"][0]
        asked = named(manifests, "NetworkPolicy", "tba-autoscaler")["spec"]["egress"]
        assert {"port": ports[HEALTH_PORT]} in open_to["ports"]
        labels = pod(manifests, "autoscaler").labels
        assert "from" not in open_to or any(
            selects(p["podSelector"], labels) for p in open_to["from"] if "podSelector" in p
        )
        assert any(
            {"port": ports[HEALTH_PORT]} in rule["ports"] and selects(rule["to"][0]["podSelector"], generator.labels)
            for rule in asked
            if "to" in rule
        )


def test_a_scorer_reaches_the_internet_only_where_its_model_or_its_judge_is() -> None:
    scorers: list[dict[str, Any]] = [
        {"name": "verifier"},
        {"name": "code", "settings": {"TBA_CODE_ENABLED": True}},
        {"name": "judge"},
        {"name": "victim", "settings": {"TBA_MODEL": "Qwen/Qwen2.5-1.5B-Instruct"}},
        {"name": "reward_model", "settings": {"TBA_MODEL": "/var/cache/tba/models/reward"}},
    ]
    manifests = render(values_of("gpu") | {"scorers": scorers})
    policies = {
        s["name"]: named(manifests, "NetworkPolicy", f"tba-reward-{s['name'].replace('_', '-')}") for s in scorers
    }
    outside = {name for name, p in policies.items() if {"ports": [{"port": 443}]} in p["spec"]["egress"]}
    assert outside == {"judge", "victim"}


def test_the_ports_of_an_object_store_and_of_a_judge_are_open_to_those_who_ask_them() -> None:
    judge = {"name": "judge", "settings": {"TBA_JUDGE_URL": "http://vllm.models:8000/v1"}}
    store = {"url": "s3://models/run", "objectStore": {"endpointUrl": "http://minio.storage:9000"}}
    manifests = render({"weights": store, "scorers": [{"name": "verifier"}, judge]})
    asked = {
        policy["metadata"]["name"]: {rule["ports"][0]["port"] for rule in policy["spec"]["egress"] if "to" not in rule}
        for policy in of_kind(manifests, "NetworkPolicy")
        if policy["spec"].get("egress")
    }
    assert {name for name, ports in asked.items() if 9000 in ports} == {"tba-learner", "tba-generator"}
    assert {name for name, ports in asked.items() if 8000 in ports} == {"tba-reward-judge"}
    assert list(a_url_that_a_pod_is_told_of_may_be_reached(manifests)) == []


def test_a_scorer_that_runs_code_gets_the_runtime_it_is_given() -> None:
    assert pod(manifests_of("multi-node"), "reward-code").spec["runtimeClassName"] == "gvisor"
    assert "runtimeClassName" not in pod(manifests_of("multi-node"), "reward-judge").spec


def test_an_upgrade_that_changes_a_job_makes_another_because_jobs_cannot_change() -> None:
    before, same, after = job_names({}), job_names({"api": {"replicas": 2}}), job_names({"image": {"tag": "0.2.0"}})
    assert before == same
    assert before.isdisjoint(after)


def test_secrets_differ_from_release_to_release() -> None:
    keys = {named(render({}), "Secret", "tba-api-key")["data"]["api-key"] for _ in range(2)}
    assert len(keys) == 2


def test_a_mirror_serves_every_image() -> None:
    images = {c["image"] for found in pods(manifests_of("airgap")) for c in found.containers}
    assert all(image.startswith("mirror.example.com/tba/") for image in images)


def test_a_digest_wins_over_a_tag() -> None:
    digest = f"sha256:{'0' * 64}"
    images = {found.spec["containers"][0]["image"] for found in pods(render({"image": {"tag": "1", "digest": digest}}))}
    assert f"tba@{digest}" in images
    assert "tba:1" not in images


def test_a_volume_of_one_node_keeps_learner_and_generators_together() -> None:
    for component in ("learner", "generator"):
        together = pod(manifests_of("default"), component).spec["affinity"]["podAffinity"]
        term, *_ = together["requiredDuringSchedulingIgnoredDuringExecution"]
        labels = pod(manifests_of("default"), component).labels
        assert term["labelSelector"]["matchLabels"].items() <= labels.items()
    assert "affinity" not in pod(manifests_of("gpu"), "generator").spec


def test_several_gpus_of_a_generator_hold_one_policy_together() -> None:
    found = pod(manifests_of("production"), "generator")
    assert variables(found.spec["containers"][0])["TBA_TENSOR_PARALLEL"] == "2"
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in found.spec["containers"][0]["volumeMounts"]
    assert found.spec["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_the_cpu_profile_needs_no_image_but_the_project_s() -> None:
    assert {c["image"] for found in pods(manifests_of("cpu")) for c in found.containers} == {"tba:0.1.0"}


def test_the_scorers_of_the_list_are_those_that_tasks_may_name() -> None:
    names = {scorer["name"] for scorer in values_of("bundled-rewards")["scorers"]}
    for component in ("api", "buffer", "kafka"):
        told = variables(pod(manifests_of("bundled-rewards"), component).spec["containers"][0])
        assert set(told["TBA_SCORERS"].split(",")) == names


def test_another_release_shares_no_name_with_the_first() -> None:
    first, second = ({(m["kind"], m["metadata"]["name"]) for m in render({}, release=r)} for r in ("tba", "tba-two"))
    assert first.isdisjoint(second)


@pytest.mark.parametrize("name", ["123", "1e3", "null", "true"])
def test_release_and_namespace_may_be_called_like_another_type(name: str) -> None:
    manifests = render({"fullnameOverride": "tba"}, release=name, namespace=name)
    assert list(a_label_is_one(manifests)) == []
    assert {manifest["metadata"]["namespace"] for manifest in manifests} == {name}
    assert variables(pod(manifests, "autoscaler").spec["containers"][0])["TBA_NAMESPACE"] == name


@pytest.mark.parametrize("release", ["tba.two", "2nd"])
def test_a_release_whose_name_no_service_can_have_is_refused(release: str) -> None:
    with pytest.raises(HelmError, match="is no name for a Service"):
        render({}, release=release)
    assert render({"fullnameOverride": "tba"}, release=release)


def test_a_whole_number_is_written_out_however_large() -> None:
    settings = {"TBA_CACHE_BYTES": 4_000_000_000, "TBA_CANARY_TOLERANCE": 0.25, "TBA_ENGINE": "vllm"}
    told = variables(pod(render({"generator": {"settings": settings}}), "generator").spec["containers"][0])
    assert {name: told[name] for name in settings} == {name: str(value) for name, value in settings.items()}


def test_what_values_say_of_every_pod_is_true_of_every_pod() -> None:
    place = {"nodeSelector": {"pool": "tba"}, "tolerations": [{"key": "dedicated", "operator": "Exists"}]}
    said = {"labels": {"team": "rl"}, "annotations": {"sidecar.istio.io/inject": "false"}}
    for found in pods(render({"pod": place | said | {"priorityClassName": "high"}})):
        assert {key: found.spec[key] for key in place} == place, found.name
        assert found.spec["priorityClassName"] == "high"
        metadata = found.owner["metadata" if found.owner["kind"] == "Pod" else "spec"]
        metadata = metadata.get("template", {"metadata": metadata})["metadata"]
        assert said["labels"].items() <= metadata["labels"].items(), found.name
        assert said["annotations"].items() <= metadata["annotations"].items(), found.name


@pytest.mark.parametrize(("kept", "size"), [({}, "10Gi"), ({"resources": {"requests": {"storage": "2Gi"}}}, "2Gi")])
def test_a_claim_that_was_kept_is_taken_as_large_as_it_is(kept: dict[str, Any], size: str) -> None:
    found = f'(dict "spec" (fromJson `{json.dumps(kept)}`))'
    probe = f'{{{{ include "tba.keptSize" (list {found} "10Gi") }}}}'
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe"}, "data": {"size": probe}}
    assert named(render({"extraObjects": [made]}), "ConfigMap", "probe")["data"] == {"size": size}


def test_a_small_node_holds_all_of_the_demonstration() -> None:
    for situation, cores, gibibytes in (("cpu", 1, 4), ("default", 2, 5)):
        found = [one for one in pods(manifests_of(situation)) for _ in range(one.owner["spec"].get("replicas", 1))]
        assert sum(requested(one, "cpu") for one in found) <= cores, situation
        assert sum(requested(one, "memory") for one in found) <= gibibytes * 2**30, situation


def test_helm_waits_for_its_test_as_long_as_the_test_does() -> None:
    (args,) = [c["args"] for c in pod(manifests_of("cpu"), "test").spec["containers"]]
    within = float(args[args.index("--within") + 1])
    files = [ROOT / "README.md", ROOT / "Makefile", *ROOT.glob("docs/**/*.md"), CHART / "templates/NOTES.txt"]
    for file in files:
        for line in re.findall(r"^.*\bhelm\b[^|\n]*\btest \S.*$", file.read_text(), re.MULTILINE):
            minutes = re.search(r"--timeout (\d+)m", line)
            assert minutes, f"{file.name}: {line.strip()}"
            assert 60 * int(minutes[1]) > within, f"{file.name}: {line.strip()}"
