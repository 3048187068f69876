"""A release as a whole: what an upgrade keeps and replaces, what the autoscaler may do, how pods are placed."""

from __future__ import annotations

from typing import Any

from services.generator.kubernetes_actuator import REQUIRED_RULES
from tests.chart.rendering import Manifest, manifests_of, named, of_kind, render, values_of
from tests.chart.rules.rule import pod, pods, variables


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


def test_the_autoscaler_may_do_what_it_calls_and_nothing_else() -> None:
    names = {"deployment": "tba-generator", "lease": "tba-autoscaler"}
    calls = {(group, resource, verb, name.format(**names)) for group, resource, verb, name in REQUIRED_RULES}
    assert granted(named(manifests_of("default"), "Role", "tba-autoscaler")) == calls


def test_an_autoscaler_that_others_follow_changes_nothing_itself() -> None:
    for situation, is_dry in {"default": None, "keda": "true", "hpa": "true"}.items():
        assert variables(pod(manifests_of(situation), "autoscaler").spec["containers"][0]).get("TBA_DRY_RUN") == is_dry


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
        (term,) = together["requiredDuringSchedulingIgnoredDuringExecution"]
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
