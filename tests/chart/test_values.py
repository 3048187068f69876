"""Values that cannot work are refused before anything is installed, with a sentence that says what would."""

from __future__ import annotations

import re
from typing import Any, Final

import pytest
import yaml
from helm_python import HelmError, lint

from tests.chart import settings_schema
from tests.chart.rendering import CHART, NAMESPACE, SITUATIONS, notes, render, values_of

KEDA: Final[dict[str, Any]] = {"generator": {"autoscaling": {"mode": "keda"}}}
EXTERNAL_POSTGRES: Final = {"mode": "external"}
EXTERNAL_KAFKA: Final = {"mode": "external", "external": {"servers": "kafka:9093"}}

REFUSED: Final[list[tuple[dict[str, Any], str]]] = [
    ({"kafak": {}}, "'kafak' not allowed"),
    ({"generator": {"gpu": 1}}, "'gpu' not allowed"),
    ({"buffer": {"settings": {"TBA_GROUPS_PER_BACH": 8}}}, "'TBA_GROUPS_PER_BACH' not allowed"),
    ({"buffer": {"settings": {"TBA_RUN_ID": "x"}}}, "'TBA_RUN_ID' not allowed"),
    ({"kafka": {"mode": "embedded"}}, "one of 'single', 'external', 'bundled'"),
    ({"runId": "My Run"}, "'My Run' does not match"),
    ({"checkpoints": {"size": "1GB"}}, "'1GB' does not match"),
    ({"image": {"digest": "abc"}}, "/image/digest"),
    ({"generator": {"autoscaling": {"max": 25}}}, "/generator/autoscaling/max"),
    ({"scorers": [{"name": "verifer"}]}, "'verifer' does not match"),
    ({"scorers": []}, "/scorers"),
    ({"scorers": [{"name": "judge.a"}, {"name": "judge.a"}]}, "two of judge.a,judge.a"),
    ({"kafka": {"mode": "external"}}, "needs kafka.external.servers"),
    ({"kafka": EXTERNAL_KAFKA}, "SASL_SSL needs kafka.external.existingSecret"),
    ({"postgres": {"mode": "external"}}, "needs postgres.external.host"),
    (
        {"postgres": EXTERNAL_POSTGRES | {"external": {"api": {"user": "x"}}}},
        "external.api needs both user and existing",
    ),
    ({"kafka": {"mode": "bundled"}}, "set generator.autoscaling.mode=none"),
    ({"generator": {"autoscaling": {"min": 5, "max": 2}}}, "min is 5 and max is 2"),
    ({"generator": {"autoscaling": {"mode": "hpa", "min": 0}}}, "hpa cannot go to zero"),
    ({"learner": {"nodes": 0}}, "/learner/nodes"),
    ({"learner": {"nodes": 2}}, "learner.nodes is 2, and the demonstration policy lies on a disk of one node"),
    ({"learner": {"gpus": 2, "settings": {"TBA_DEVICE": "cuda:0"}}}, "learner.settings.TBA_DEVICE is cuda:0"),
    ({"learner": {"settings": {"TBA_MODEL": "x"}}}, "'TBA_MODEL' not allowed"),
    ({"autoscaler": {"settings": {"TBA_LEASE": "x"}}}, "'TBA_LEASE' not allowed"),
    ({"scorers": [{"name": "judge", "settings": {"TBA_JUDGE_API_KEY": "x"}}]}, "'TBA_JUDGE_API_KEY' not allowed"),
    ({"learner": {"env": [{"name": "TBA_RUN_ID", "value": "x"}]}}, "learner: the environment has TBA_RUN_ID twice"),
    ({"autoscaler": {"settings": {"TBA_DRY_RUN": True}}} | KEDA, "autoscaler: the environment has TBA_DRY_RUN twice"),
    ({"scorers": [{"name": "code"}]}, "code runs programs that tasks bring"),
    ({"scorers": [{"name": "code.a", "settings": {"TBA_CODE_ENABLED": False}}]}, "code.a runs programs"),
    ({"fullnameOverride": "x" * 40, "scorers": [{"name": "judge.strict"}]}, "-reward-judge-strict has 60 characters"),
    ({"monitoring": {"rules": {"runbooks": "wiki"}}}, "/monitoring/rules/runbooks"),
    ({"api": {"ingress": {"enabled": True}}}, "needs api.ingress.host"),
    ({"production": True}, "refuses kafka.mode=single"),
    ({"production": True}, "refuses postgres.mode=single"),
    ({"production": True}, "set policy.model"),
    ({"production": True, "kafka": {"mode": "bundled"}}, "refuses kafka.mode=bundled"),
]


@pytest.mark.parametrize(("values", "sentence"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_values_that_cannot_work_are_refused_with_the_reason(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HelmError, match=re.escape(sentence)):
        render(values)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_helm_finds_nothing_to_complain_of(situation: str) -> None:
    report = lint(CHART, values_of(situation), strict=True, namespace=NAMESPACE, kube_version="v1.36.0")
    complaints = [m for m in report["messages"] if m["severity"] > 1]
    assert (complaints, report["errors"]) == ([], [])


def test_the_schema_lists_the_settings_that_the_processes_read() -> None:
    found = {name: part for name, part in settings_schema.load()["$defs"].items() if name.endswith("Settings")}
    assert found == settings_schema.expected(), "run `python -m tests.chart.settings_schema`"


def test_every_value_is_in_the_schema_and_every_part_of_the_schema_in_the_values() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    properties = settings_schema.load()["properties"]
    assert values.keys() == properties.keys() - {"global"}


def test_notes_warn_of_servers_that_lose_what_they_hold() -> None:
    assert "WARNING: kafka.mode=bundled" in notes(values_of("cpu"))
    assert "WARNING" not in notes(values_of("production"))


def test_notes_say_how_to_reach_the_api_with_its_key() -> None:
    said = notes({})
    assert "port-forward svc/tba-api" in said
    assert "get secret tba-api-key" in said


def test_each_process_connects_to_an_external_database_as_the_user_it_was_given() -> None:
    users = {}
    for manifest in render(values_of("production")):
        spec = manifest.get("spec", {}).get("template", {}).get("spec", {})
        for container in (*spec.get("initContainers", []), *spec.get("containers", [])):
            told = {variable["name"]: variable for variable in container.get("env", [])}
            if "TBA_DATABASE_URL" in told:
                user = told["TBA_DATABASE_URL"]["value"].partition("//")[2].partition("@")[0]
                secret = told["PGPASSWORD"]["valueFrom"]["secretKeyRef"]["name"]
                users[manifest["metadata"]["labels"]["app.kubernetes.io/component"], container["name"]] = (user, secret)
    api, buffer = ("tba_api_login", "tba-postgres-api"), ("tba_buffer_login", "tba-postgres-buffer")
    assert users == {
        ("migrate", "migrate"): ("tba", "tba-postgres-app"),
        ("api", "api"): api,
        ("api", "wait-for-schema"): api,
        ("buffer", "buffer"): buffer,
        ("buffer", "wait-for-schema"): buffer,
    }
