"""Which settings the chart lets each component have: taken from the Settings classes into values.schema.json.

`python -m tests.chart.settings_schema` writes them; a test fails while they differ. What the chart sets itself is
left out, so that nobody sets it twice.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any, Final

from pydantic_settings import BaseSettings

from tba_common.settings import ServiceSettings
from tests.chart.rendering import CHART, ROOT

_LINE: Final = 100
SCHEMA: Final = CHART / "values.schema.json"
#: The settings files of each component's processes.
FILES: Final = {
    "api": ("services/buffer/api_settings.py",),
    "buffer": ("services/buffer/settings.py",),
    "generator": ("services/generator/settings.py",),
    "scorer": tuple(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("services/reward/*settings.py"))),
    "learner": ("services/learner/settings.py",),
    "autoscaler": ("services/generator/autoscaler_settings.py",),
}
#: What templates/_environment.tpl and the workloads say.
SET_BY_CHART: Final = {
    *("TBA_RUN_ID", "TBA_SCORERS", "TBA_HEALTH_ADDRESS", "TBA_GRACE_SECONDS", "TBA_LOG_FORMAT"),
    *("TBA_SHARING", "TBA_PROCESS_COUNT", "TBA_PROCESS_INDEX", "TBA_TENSOR_PARALLEL"),
    *("TBA_API_ADDRESS", "TBA_API_KEY", "TBA_API_URL", "TBA_DATABASE_URL"),
    *("TBA_DEPLOYMENT", "TBA_NAMESPACE", "TBA_LEASE", "TBA_MIN_REPLICAS", "TBA_MAX_REPLICAS"),
    *("TBA_WEIGHTS_URL", "TBA_WEIGHTS_CACHE_DIRECTORY", "TBA_CHECKPOINT_DIRECTORY"),
    *(f"TBA_{field}".upper() for field in ServiceSettings.model_fields if field.startswith("kafka_")),
}
#: Of processes on one machine, and what `policy.model` says.
NOT_FOR_PODS: Final = {"TBA_GENERATOR_ADDRESSES", "TBA_PROCESS_COUNT_FILE"}
SET_BY_POLICY: Final = {"learner": {"TBA_MODEL"}}


def variables(component: str) -> set[str]:
    """Every variable that some process of a component reads."""
    return {f"TBA_{name}".upper() for name, _ in _fields(component)}


def secrets(component: str) -> set[str]:
    """Those that never stand in values: they come from a Secret, by `env`."""
    return {f"TBA_{name}".upper() for name, kind in _fields(component) if "SecretStr" in str(kind)}


def expected() -> dict[str, Any]:
    """The part of the schema that this file writes."""
    return {f"{component}Settings": _object(_settable(component)) for component in FILES}


def _settable(component: str) -> set[str]:
    others = SET_BY_CHART | NOT_FOR_PODS | SET_BY_POLICY.get(component, set())
    return variables(component) - others - secrets(component)


def _fields(component: str) -> list[tuple[str, object]]:
    classes = [c for file in FILES[component] if (ROOT / file).exists() for c in _classes(file)]
    return [(name, field.annotation) for c in classes for name, field in c.model_fields.items()]


def load() -> dict[str, Any]:
    """The schema as it is."""
    schema: dict[str, Any] = json.loads(SCHEMA.read_text())
    return schema


def main() -> None:
    """Bring the schema up to the Settings classes."""
    schema = load()
    schema["$defs"] |= expected()
    SCHEMA.write_text(_compact(json.dumps(schema, indent=2)) + "\n")


def _compact(text: str) -> str:
    """Put what is short on one line, innermost first."""

    def on_one_line(match: re.Match[str]) -> str:
        line = (
            re.sub(r"\s*\n\s*", " ", match[0])
            .replace("{ ", "{")
            .replace(" }", "}")
            .replace("[ ", "[")
            .replace(" ]", "]")
        )
        return line if len(line) <= _LINE else match[0]

    for _ in range(2):
        text = re.sub(r"[{\[](?:[^{}\[\]]|\{[^{}\[\]\n]*\}|\[[^{}\[\]\n]*\])*[}\]]", on_one_line, text)
    return text


def _classes(file: str) -> list[type[BaseSettings]]:
    module = importlib.import_module(str(Path(file).with_suffix("")).replace("/", "."))
    found = [value for _, value in inspect.getmembers(module, inspect.isclass)]
    return [c for c in found if issubclass(c, BaseSettings) and c.__module__ == module.__name__]


def _object(names: set[str]) -> dict[str, Any]:
    setting = {"$ref": "#/$defs/setting"}
    return {"type": "object", "additionalProperties": False, "properties": dict.fromkeys(sorted(names), setting)}


if __name__ == "__main__":
    main()
