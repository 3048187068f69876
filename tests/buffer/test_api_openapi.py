from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI

from services.buffer.api import create_app
from services.buffer.api_autoscaler import DecisionBody, OverrideBody
from services.buffer.api_body import Reader
from services.buffer.api_gradings import GradingBody, ValidationBody
from services.buffer.api_rescores import RescoreBody
from services.buffer.api_seeds import SeedSpec
from services.buffer.api_settings import ApiSettings
from services.buffer.api_tasks import EvaluationBody, TaskBody
from tba_common.tasks import PromptSpec

DOCUMENT: dict[str, Any] = json.loads(json.dumps(create_app(ApiSettings()).openapi()))
OPERATIONS = {
    operation["operationId"]: operation for methods in DOCUMENT["paths"].values() for operation in methods.values()
}


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_the_description_is_openapi_3_1() -> None:
    assert re.fullmatch(r"3\.1\.\d+", OpenAPI.model_validate(DOCUMENT).openapi)


def test_every_reference_leads_somewhere() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    found = set(references(DOCUMENT))
    assert found
    assert {ref for ref in found if ref.removeprefix("#/components/schemas/") not in schemas} == set()


def test_the_names_of_the_operations_are_frozen() -> None:
    assert set(OPERATIONS) == {
        "createTask",
        "listTasks",
        "getTask",
        "pauseTask",
        "resumeTask",
        "deleteTask",
        "addPrompts",
        "evaluateTask",
        "seedTask",
        "rescoreTask",
        "listRescores",
        "getRescore",
        "validateGrader",
        "runGrader",
        "listGradings",
        "getGrading",
        "listDeadLetters",
        "getDeadLetter",
        "replayDeadLetter",
        "dropDeadLetter",
        "getAutoscaler",
        "getDesiredGenerators",
        "addScaleDecision",
        "overrideAutoscaler",
        "clearOverride",
        "getStatus",
        "listSteps",
        "listEvaluations",
        "listTrajectories",
        "getTrajectory",
        "getHealth",
        "getReadiness",
        "getMetrics",
        "getVersion",
    }


def test_every_operation_has_a_summary_and_a_sentence() -> None:
    silent = [name for name, operation in OPERATIONS.items() if not operation.get("description")]
    assert silent == []


def test_every_operation_under_v1_tells_of_its_problems_and_its_key() -> None:
    for path, methods in DOCUMENT["paths"].items():
        for operation in methods.values():
            if path.startswith("/v1"):
                schema = operation["responses"]["default"]["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ProblemDetails"}
                assert {"apiKey": []} in operation["security"]


def test_every_change_may_carry_an_idempotency_key() -> None:
    changing = [op for methods in DOCUMENT["paths"].values() for method, op in methods.items() if method != "get"]
    changing = [operation for operation in changing if operation["operationId"] != "validateGrader"]  # changes nothing
    assert changing
    for operation in changing:
        assert "Idempotency-Key" in {parameter["name"] for parameter in operation["parameters"]}


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("createTask", TaskBody),
        ("addPrompts", tuple[PromptSpec, ...]),
        ("evaluateTask", EvaluationBody),
        ("seedTask", tuple[SeedSpec, ...]),
        ("rescoreTask", RescoreBody),
        ("validateGrader", ValidationBody),
        ("runGrader", GradingBody),
        ("addScaleDecision", DecisionBody),
        ("overrideAutoscaler", OverrideBody),
    ],
)
def test_the_examples_are_accepted(operation: str, kind: Any) -> None:
    content = OPERATIONS[operation]["requestBody"]["content"]["application/json"]
    _, errors = Reader(kind).parse(json.dumps(content["example"]).encode())
    assert errors == []


def test_every_change_that_reads_a_body_describes_it() -> None:
    """The readers are ours, and FastAPI cannot see them."""
    changing = [op for methods in DOCUMENT["paths"].values() for method, op in methods.items() if method != "get"]
    without = {operation["operationId"] for operation in changing if "requestBody" not in operation}
    of_tasks, of_letters = {"pauseTask", "resumeTask", "deleteTask"}, {"replayDeadLetter", "dropDeadLetter"}
    assert without == of_tasks | of_letters | {"clearOverride"}
