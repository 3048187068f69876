"""What a rule is: a check of rendered manifests, and one fault that it must find."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.chart.rendering import Manifest

Manifests = list[Manifest]
Check = Callable[[Manifests], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Rule:
    """`check` says one sentence for each fault; `plant` puts one into the manifests of `situation`."""

    check: Check
    plant: Callable[[Manifests], object]
    situation: str = "default"

    @property
    def name(self) -> str:
        """The law as a sentence."""
        return getattr(self.check, "__name__", "").replace("_", " ")


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod or a template of pods, and what owns it."""

    owner: Manifest
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def name(self) -> str:
        """For sentences: Deployment/tba-api."""
        return label(self.owner)

    @property
    def component(self) -> str:
        """Which of the platform's parts it is."""
        return self.labels.get("app.kubernetes.io/component", "")

    @property
    def containers(self) -> list[dict[str, Any]]:
        """Those that start first, then those that stay."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def claims(self) -> list[str]:
        """Names of the volumes that a StatefulSet adds."""
        return [claim["metadata"]["name"] for claim in self.owner["spec"].get("volumeClaimTemplates", [])]


def label(manifest: Manifest) -> str:
    """Kind and name."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def pods(manifests: Manifests) -> Iterator[Pod]:
    """Everything that becomes a pod."""
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            yield Pod(manifest, manifest["metadata"]["labels"], manifest["spec"])
        elif manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
            template = manifest["spec"]["template"]
            yield Pod(manifest, template["metadata"]["labels"], template["spec"])


def pod(manifests: Manifests, component: str) -> Pod:
    """The pod of a component."""
    return next(found for found in pods(manifests) if found.component == component)


def variables(container: dict[str, Any]) -> dict[str, str]:
    """The environment whose values are written out."""
    return {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels; an empty one takes all."""
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
