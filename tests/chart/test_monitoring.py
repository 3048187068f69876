"""What is watched exists: metrics in alerts and dashboards, a runbook for each alert."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final, get_args

import pytest
import yaml

from services.generator.scaling_values import Reason
from tba_common import metrics
from tests.chart.rendering import CHART, ROOT, manifests_of, of_kind, render

ALERTS: Final = sorted(CHART.glob("rules/*.yaml"))
DASHBOARDS: Final = sorted(CHART.glob("dashboards/*.json"))
RUNBOOKS: Final = ROOT / "docs/runbooks"


def exported() -> set[str]:
    """The names that a scrape finds, of every kind of process."""
    rooms = ("generator", "reward", "buffer", "learner", "autoscaler")
    text = b"".join(metrics.exposition(f"tba-{room}") for room in rooms).decode()
    kinds = dict(re.findall(r"^# TYPE (tba_\w+) (\w+)$", text, re.MULTILINE))
    histograms = {name for name, kind in kinds.items() if kind == "histogram"}
    return kinds.keys() | {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}


def unknown(expression: str) -> set[str]:
    """The platform's metrics in an expression that no process exports."""
    return set(re.findall(r"\btba_[a-z_]+", expression)) - exported()


def alert(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def test_a_metric_that_nobody_exports_is_noticed() -> None:
    assert unknown("rate(tba_learner_waits_total[5m]) > tba_learner_loss") == {"tba_learner_waits_total"}


@pytest.mark.parametrize("path", ALERTS, ids=lambda path: path.stem)
def test_an_alert_is_about_metrics_that_are_exported(path: Path) -> None:
    expression = alert(path)["expr"]
    assert "tba_" in expression
    assert unknown(expression) == set()


def asked(label: str, metric: str = "") -> set[str]:
    """The values of a label that any alert asks for, of one metric or of all."""
    found = (re.findall(rf'{metric}{{{label}=~?"([^"]+)"}}', alert(path)["expr"]) for path in ALERTS)
    return {value for matches in found for match in matches for value in match.split("|")}


def test_alerts_ask_for_reasons_that_the_autoscaler_gives() -> None:
    reasons = asked("reason", "tba_autoscaler_desired_replicas")
    assert reasons >= {"no_signals", "old_signals", "limits"}
    assert reasons <= set(get_args(Reason))


def test_alerts_ask_for_components_that_there_are_and_that_a_scrape_tells() -> None:
    manifests = manifests_of("production")
    pods = [m["spec"]["template"]["metadata"]["labels"] for m in of_kind(manifests, "Deployment")]
    assert asked("app_kubernetes_io_component") == {"autoscaler"}
    assert "autoscaler" in {labels["app.kubernetes.io/component"] for labels in pods}
    (monitor,) = of_kind(manifests, "PodMonitor")
    assert "app.kubernetes.io/component" in monitor["spec"]["podTargetLabels"]


@pytest.mark.parametrize("path", ALERTS, ids=lambda path: path.stem)
def test_an_alert_has_a_runbook_with_what_to_look_at_and_what_to_do(path: Path) -> None:
    name = alert(path)["alert"]
    page = (RUNBOOKS / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == ["Look", "Do"]


def test_no_runbook_is_about_an_alert_that_is_not_there() -> None:
    assert {page.stem for page in RUNBOOKS.glob("*.md")} == {alert(path)["alert"] for path in ALERTS}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_panel_shows_metrics_that_are_exported(path: Path) -> None:
    expressions = [target["expr"] for panel in json.loads(path.read_text())["panels"] for target in panel["targets"]]
    assert expressions
    assert set().union(*map(unknown, expressions)) == set()


def test_rules_and_dashboards_reach_the_cluster_but_for_the_excluded() -> None:
    manifests = manifests_of("production")
    rules = [m["spec"]["groups"][0]["rules"][0] for m in of_kind(manifests, "PrometheusRule")]
    assert {rule["alert"] for rule in rules} == {alert(path)["alert"] for path in ALERTS} - {"TbaNoWeights"}
    shown = [
        m["data"] for m in of_kind(manifests, "ConfigMap") if "grafana_dashboard" in m["metadata"].get("labels", {})
    ]
    assert {name for data in shown for name in data} == {path.name for path in DASHBOARDS}


def test_an_alert_names_its_page_in_the_repository_or_links_to_where_it_is_published() -> None:
    rules: dict[str, Any] = {"enabled": True}
    published = {"runbooks": "https://runbooks.example.com/tba"}
    for values, key, place in (
        (rules, "runbook", "docs/runbooks"),
        (rules | published, "runbook_url", published["runbooks"]),
    ):
        for found in of_kind(render({"monitoring": {"rules": values}}), "PrometheusRule"):
            (rule,) = found["spec"]["groups"][0]["rules"]
            annotations = {name: text for name, text in rule["annotations"].items() if name.startswith("runbook")}
            assert annotations == {key: f"{place}/{rule['alert']}.md"}


def test_what_an_hpa_follows_is_exported() -> None:
    (scaler,) = of_kind(manifests_of("hpa"), "HorizontalPodAutoscaler")
    assert unknown(scaler["spec"]["metrics"][0]["external"]["metric"]["name"]) == set()
