"""The types of Kubernetes' own API, strictly: an unknown field is a fault. Other people's kinds by their own models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import jsonschema
from cloudcoil.models.keda.v1alpha1 import ScaledObject, TriggerAuthentication
from kubernetes_validate.utils import schema_contents
from pydantic import ValidationError
from referencing import Registry, Resource

from tests.chart.rendering import Manifest
from tests.chart.rules.rule import Manifests, Rule, label, pod

VERSIONS: Final = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
_KEDA: Final = {"ScaledObject": ScaledObject, "TriggerAuthentication": TriggerAuthentication}
#: The Prometheus operator's: what we use of them.
_PROMETHEUS: Final = {
    "PodMonitor": {"selector", "podTargetLabels", "podMetricsEndpoints"},
    "PrometheusRule": {"groups"},
}


def every_version_knows_every_field(manifests: Manifests) -> Iterator[str]:
    for manifest in manifests:
        yield from (f"{label(manifest)}: {fault}" for fault in _faults(manifest))


def _faults(manifest: Manifest) -> Iterator[str]:
    kind = manifest["kind"]
    if kind in _KEDA:
        try:
            _KEDA[kind].model_validate(manifest)
        except ValidationError as error:
            yield str(error)
    elif kind in _PROMETHEUS:
        if unknown := manifest["spec"].keys() - _PROMETHEUS[kind]:
            yield f"unknown {sorted(unknown)}"
    else:
        for version in VERSIONS:
            for fault in _validator(version, kind, manifest["apiVersion"]).iter_errors(manifest):
                yield f"{version}: {fault.json_path}: {fault.message[:200]}"


@cache
def _validator(version: str, kind: str, api_version: str) -> Any:
    group, _, name = api_version.rpartition("/")
    file = "-".join(part for part in (kind.lower(), group.split(".")[0], name) if part)
    schema = schema_contents(f"kubernetes-json-schema/{_folder(version)}/{file}.json", version)
    registry = Resource.from_contents(schema) @ _definitions(version)
    return jsonschema.Draft202012Validator(schema, registry=registry)


@cache
def _definitions(version: str) -> Any:
    contents = schema_contents(f"kubernetes-json-schema/{_folder(version)}/_definitions.json", version)
    return Resource.from_contents(contents) @ Registry()


@cache
def _folder(version: str) -> str:
    from kubernetes_validate.utils import all_versions

    newest = next(known for known in reversed(all_versions()) if known.startswith(f"{version}."))
    return f"v{newest}-local-strict"


RULES: Final = (Rule(every_version_knows_every_field, lambda m: pod(m, "api").spec.update(terminationGraceSeconds=30)),)
