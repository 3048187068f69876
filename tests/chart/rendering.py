"""The chart as a cluster would get it: values in, manifests out, by Helm itself as a library."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from helm_python import Chart

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "helm/tba"
#: The situations that the chart is made for; the first is no values at all.
SITUATIONS: Final = ("default", *sorted(path.name.removesuffix("-values.yaml") for path in CHART.glob("ci/*.yaml")))
RELEASE: Final = "tba"
NAMESPACE: Final = "training"

Values = dict[str, Any]
Manifest = dict[str, Any]


def values_of(situation: str) -> Values:
    """The values that a situation adds to the chart's own."""
    if situation == "default":
        return {}
    values: Values = yaml.safe_load((CHART / f"ci/{situation}-values.yaml").read_text())
    return values


def render(values: Values, *, release: str = RELEASE, namespace: str = NAMESPACE) -> list[Manifest]:
    """Every manifest of a release, hooks included.

    Raises:
        HelmError: the schema or the chart's own checks refuse the values; the message says why.
    """
    files = _chart().render(values, name=release, namespace=namespace)
    texts = (text for path, text in sorted(files.items()) if path.endswith(".yaml"))
    return [manifest for text in texts for manifest in yaml.load_all(text, yaml.CSafeLoader) if manifest]


def notes(values: Values) -> str:
    """What Helm says after an install."""
    files = _chart().render(values, name=RELEASE, namespace=NAMESPACE)
    return next(text for path, text in files.items() if path.endswith("NOTES.txt"))


def manifests_of(situation: str) -> list[Manifest]:
    """A copy of what a situation renders to, for those who change it."""
    return copy.deepcopy(_rendered(situation))


@cache
def _rendered(situation: str) -> list[Manifest]:
    return render(values_of(situation))


@cache
def _chart() -> Chart:
    return Chart.load(CHART)


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The manifest of a kind and a name."""
    return next(m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name)


def of_kind(manifests: list[Manifest], *kinds: str) -> Iterator[Manifest]:
    """The manifests of some kinds."""
    return (manifest for manifest in manifests if manifest["kind"] in kinds)
