"""The processes of the platform on one machine, as data: command, environment, readiness, in the order they start.

They start and stop in stages: servers, schema, memory, learning, sampling. Stopping begins with the generators,
so that what is in flight still finds its scorers and its buffer.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from tba_cli.local import postgres
from tba_cli.local.ports import LOOPBACK, is_ready
from tba_cli.local.process import ProcessSpec

_LOADING_SECONDS: Final = 600.0  # a large model is slow to load
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1"}  # torch processes beside one another slow each other down


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """What a stack is made of. A port of 0 is any free one.

    `env` adds settings to a process, by its name without a number: `{"tba-learner": {"TBA_MAX_STEPS": "100"}}`.
    """

    directory: Path
    model: str  # the policy to start from: a Hugging Face folder or id
    run_id: str = "main"
    api_port: int = 0
    kafka_port: int = 0
    postgres_port: int = 0
    generators: int = 2
    verifiers: int = 1
    generator_python: str = sys.executable  # the interpreter of an environment with vLLM makes them run on it
    env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """How many processes the stack has."""
        return 6 + self.verifiers + self.generators


def specs(options: StackOptions, health_ports: Iterator[int]) -> list[ProcessSpec]:
    """Every process of a stack whose ports are chosen; each takes one of `health_ports` for its /readyz."""
    ours = [*_servers(options), *_memory(options), *_learning(options), *_sampling(options)]
    return [_placed(spec, options, next(health_ports)) for spec in ours]


def kafka_servers(options: StackOptions) -> str:
    """Bootstrap servers of the stack's broker."""
    return f"{LOOPBACK}:{options.kafka_port}"


def database_url(options: StackOptions) -> str:
    """SQLAlchemy URL of the stack's database."""
    return postgres.url(options.directory / "postgres", options.postgres_port)


def _servers(options: StackOptions) -> Iterator[ProcessSpec]:
    place = ("--directory", str(options.directory / "postgres"), "--port", str(options.postgres_port))
    yield ProcessSpec(
        name="postgres",
        command=_python("tba_cli.local.postgres", *place),
        grace_seconds=30.0,  # it writes everything to disk
    )
    yield ProcessSpec(
        name="kafka-broker",
        command=_python("tba_cli.local.kafka_broker", "--port", str(options.kafka_port)),
        with_previous=True,
    )


def _memory(options: StackOptions) -> Iterator[ProcessSpec]:
    database = {"TBA_DATABASE_URL": database_url(options)}
    yield ProcessSpec(
        name="migrate",
        command=_python("services.buffer", "migrate"),
        env=database,
        finite=True,
        next_when_done=True,
    )
    yield ProcessSpec(
        name="tba-api",
        command=_python("services.buffer", "api"),
        env={**database, "TBA_API_ADDRESS": f"{LOOPBACK}:{options.api_port}"},
    )
    yield ProcessSpec(name="tba-buffer", command=_python("services.buffer", "serve"), env=database, with_previous=True)


def _learning(options: StackOptions) -> Iterator[ProcessSpec]:
    checkpoints = {"TBA_CHECKPOINT_DIRECTORY": str(options.directory / "checkpoints")}
    yield ProcessSpec(
        name="tba-learner",
        command=_python("services.learner", "run"),
        env={"TBA_MODEL": options.model, **_weights(options), **checkpoints, **_ONE_THREAD},
        finite=True,
        ready_seconds=_LOADING_SECONDS,
        grace_seconds=30.0,  # it finishes its step and writes a checkpoint
    )
    for index in range(options.verifiers):
        yield ProcessSpec(
            name=f"tba-reward-verifier-{index}",
            command=_python("services.reward", "verifier"),
            env=_share(index, options.verifiers),
            with_previous=True,
        )


def _sampling(options: StackOptions) -> Iterator[ProcessSpec]:
    for index in range(options.generators):
        yield ProcessSpec(
            name=f"tba-generator-{index}",
            command=(options.generator_python, "-m", "services.generator", "worker"),
            env={**_share(index, options.generators), **_weights(options), **_ONE_THREAD},
            ready_seconds=_LOADING_SECONDS,
            with_previous=index > 0,
        )


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)


def _weights(options: StackOptions) -> dict[str, str]:
    return {"TBA_WEIGHTS_URL": str(options.directory / "weights")}


def _share(index: int, count: int) -> dict[str, str]:
    return {"TBA_SHARING": "static", "TBA_PROCESS_INDEX": str(index), "TBA_PROCESS_COUNT": str(count)}


def _placed(spec: ProcessSpec, options: StackOptions, health_port: int) -> ProcessSpec:
    """Add what every process needs, and what the options say about this one."""
    health = f"{LOOPBACK}:{health_port}"
    env = {
        "PYTHONUNBUFFERED": "1",
        "TBA_RUN_ID": options.run_id,
        "TBA_KAFKA_SERVERS": kafka_servers(options),
        "TBA_HEALTH_ADDRESS": health,
        **spec.env,
        **options.env.get(re.sub(r"-\d+$", "", spec.name), {}),
    }
    return replace(spec, env=env, ready=None if spec.next_when_done else partial(is_ready, health))
