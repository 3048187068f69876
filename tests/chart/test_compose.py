"""deploy/compose.yaml tells our processes what they understand, as the chart must."""

from __future__ import annotations

from typing import Any, Final

import pytest
import yaml

from tests.chart.rendering import CHART, ROOT
from tests.chart.rules.platform import FOREIGN, SHARED, fault_of
from tests.chart.settings_schema import FILES
from tests.chart.settings_schema import variables as read_by

Service = dict[str, Any]

SERVICES: Final[dict[str, Service]] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
OURS: Final = sorted(name for name, service in SERVICES.items() if service["image"].startswith("tba:"))
ENDS: Final = {"topics", "migrate", "policy", "seed"}


def component_of(name: str) -> str:
    return "scorer" if name.startswith("reward-") else "buffer" if name == "migrate" else name


def test_ours_run_the_chart_s_version_and_one_of_them_builds_it() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert {SERVICES[name]["image"] for name in OURS} == {f"tba:{version}"}
    assert [name for name in OURS if "build" in SERVICES[name]] == ["migrate"]


@pytest.mark.parametrize("name", OURS)
def test_a_command_exists(name: str) -> None:
    assert fault_of(tuple(SERVICES[name]["command"])) == ""


@pytest.mark.parametrize("name", OURS)
def test_a_variable_is_read_by_its_process(name: str) -> None:
    component = component_of(name)
    known = FOREIGN.keys() | (SHARED if name in ENDS else set())
    known |= read_by(component) if component in FILES else set()
    known |= {"TBA_DATABASE_URL", "TBA_WEIGHTS_URL"}  # in the environment that all of them share
    assert SERVICES[name].get("environment", {}).keys() <= known


@pytest.mark.parametrize("name", OURS)
def test_a_container_is_locked_down_like_a_pod(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", OURS)
def test_what_ends_is_waited_for_and_what_stays_is_not(name: str) -> None:
    awaited = {other for other, how in SERVICES[name].get("depends_on", {}).items() if how["condition"]}
    assert awaited <= ENDS
    assert (SERVICES[name]["restart"] == "on-failure") == (name in ENDS)
