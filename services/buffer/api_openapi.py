"""The API's description (OpenAPI 3.1): the routes as FastAPI sees them, and what it cannot see.

Bodies are read by our own strict reader, so their schemas, examples and problems are added here.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from services.buffer.api_autoscaler import DecisionBody, OverrideBody
from services.buffer.api_body import JSON_TYPE, NDJSON_TYPE
from services.buffer.api_gradings import GradingBody, ValidationBody
from services.buffer.api_rescores import RescoreBody
from services.buffer.api_seeds import SeedSpec
from services.buffer.api_tasks import EvaluationBody, TaskBody
from services.buffer.problems import MEDIA_TYPE, ProblemDetails
from tba_common.tasks import PromptSpec

_REFERENCE: Final = "#/components/schemas/"
_MODE: Final[JsonSchemaMode] = "validation"
_MODELS: Final = (
    *(TaskBody, PromptSpec, EvaluationBody, RescoreBody, SeedSpec),
    *(ValidationBody, GradingBody, DecisionBody, OverrideBody, ProblemDetails),
)

_PROMPTS: Final = [
    {"text": "12+07=", "reference": "19", "key": "12+07"},
    {"text": "33+48=", "reference": "81", "key": "33+48", "split": "eval"},
]
_TASK: Final = {
    "name": "addition",
    "family": "math",
    "reward": [{"scorer": "verifier", "weight": 1.0, "options": {"match": "exact"}}],
    "sampling": {"completions": 16, "temperature": 1.0, "max_new_tokens": 8},
    "target": {"beta": 0.05},
    "eval_fraction": 0.1,
    "prompts": _PROMPTS,
}
_REWARD: Final = {"reward": [{"scorer": "verifier", "options": {"match": "last_number"}}]}
_SEEDS: Final = [{"prompt": "12+07=", "answer": "19"}]
_DECISION: Final = {
    **{
        "desired": 3,
        "replicas": 2,
        "ready": 2,
        "reason": "starving",
        "applied": True,
        "decided_by": "tba-autoscaler-0",
    },
    "sentence": "The learner waits 40% of the time: one more generator.",
}
_ONE: Final = {"$ref": f"{_REFERENCE}PromptSpec"}
_SEED: Final = {"$ref": f"{_REFERENCE}SeedSpec"}


def _json(model: str, example: Any, *, required: bool = True) -> dict[str, Any]:
    content = {"schema": {"$ref": f"{_REFERENCE}{model}"}, "example": example}
    return {"required": required, "content": {JSON_TYPE: content}}


_BODIES: Final[dict[str, dict[str, Any]]] = {
    "createTask": _json("TaskBody", _TASK),
    "validateGrader": _json("ValidationBody", _REWARD),
    "runGrader": _json(
        "GradingBody", {**_REWARD, "prompt": {"text": "12+07=", "reference": "19"}, "completions": ["19"]}
    ),
    "rescoreTask": _json("RescoreBody", {**_REWARD, "requested_by": "ada"}, required=False),
    "seedTask": {
        "required": True,
        "content": {
            JSON_TYPE: {
                "schema": {"type": "array", "items": _SEED, "minItems": 1, "maxItems": 10_000},
                "example": _SEEDS,
            },
            NDJSON_TYPE: {"schema": _SEED, "example": '{"prompt": "12+07=", "answer": "19"}\n'},
        },
    },
    "addPrompts": {
        "required": True,
        "content": {
            JSON_TYPE: {
                "schema": {"type": "array", "items": _ONE, "minItems": 1, "maxItems": 10_000},
                "example": _PROMPTS,
            },
            NDJSON_TYPE: {"schema": _ONE, "example": '{"text": "12+07=", "reference": "19"}\n{"text": "1+1="}\n'},
        },
    },
    "addScaleDecision": _json("DecisionBody", _DECISION),
    "overrideAutoscaler": _json("OverrideBody", {"replicas": 4, "until": "2099-01-01T00:00:00Z"}),
    "evaluateTask": _json("EvaluationBody", {"policy_version": 12}, required=False),
}


class DescribedApi(FastAPI):
    """A FastAPI application whose description is complete."""

    def openapi(self) -> dict[str, Any]:
        """Return the document, made once."""
        if self.openapi_schema is None:
            document = get_openapi(
                title=self.title,
                version=self.version,
                summary=self.summary,
                description=self.description,
                routes=self.routes,
                separate_input_output_schemas=False,
            )
            _complete(document)
            self.openapi_schema = document
        return self.openapi_schema


def _complete(document: dict[str, Any]) -> None:
    components = document["components"]
    components["schemas"] |= _schemas()
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    components["securitySchemes"] = {"apiKey": {"type": "http", "scheme": "bearer"}}
    problem = {
        "description": "A problem (RFC 9457): what was expected, and what came",
        "content": {MEDIA_TYPE: {"schema": {"$ref": f"{_REFERENCE}ProblemDetails"}}},
    }
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            if path.startswith("/v1"):
                operation["responses"]["default"] = problem
                operation["security"] = [{"apiKey": []}, {}]  # {}: on loopback without a key
            if operation["operationId"] in _BODIES:
                operation["requestBody"] = _BODIES[operation["operationId"]]


def _schemas() -> dict[str, Any]:
    adapters = [(model.__name__, _MODE, TypeAdapter(model).core_schema) for model in _MODELS]
    generator = GenerateJsonSchema(ref_template=f"{_REFERENCE}{{model}}")
    _, definitions = generator.generate_definitions(adapters)
    return {str(name): schema for name, schema in definitions.items()}
