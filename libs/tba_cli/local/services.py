"""The processes of the platform on one machine, as data: command, environment, readiness, in the order they start.

They start and stop in stages: servers, schema, memory, learning, sampling. Stopping begins with the generators,
so that what is in flight still finds its scorers and its buffer.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from tba_cli.local import postgres
from tba_cli.local.ports import LOOPBACK, is_ready
from tba_cli.local.process import ProcessSpec

_LOADING_SECONDS: Final = 600.0  # a large model is slow to load
_API_ROLE: Final = "tba_api"  # what the migration lets it do: services/buffer/migrations/roles.py
_BUFFER_ROLE: Final = "tba_buffer"
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
    autoscale: tuple[int, int] | None = None  # fewest and most generators, in place of a fixed number
    scorers: tuple[str, ...] = ("verifier",)  # one process each; `kind.instance` is a second process of a kind
    verifiers: int = 1  # so many processes of the scorer `verifier`
    generator_python: str = sys.executable  # the interpreter of an environment with vLLM makes them run on it
    env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """How many processes the stack has."""
        return 6 + sum(map(self.count, self.scorers)) + self.most_generators + (self.autoscale is not None)

    @property
    def most_generators(self) -> int:
        """How many generators there may be."""
        return self.generators if self.autoscale is None else self.autoscale[1]

    @property
    def first_generators(self) -> int:
        """How many generators are started first."""
        return self.generators if self.autoscale is None else self.autoscale[0]

    def count(self, scorer: str) -> int:
        """How many processes a scorer has."""
        return self.verifiers if scorer == "verifier" else 1


def specs(options: StackOptions, health_ports: Iterator[int]) -> list[ProcessSpec]:
    """Every process of a stack whose ports are chosen; each takes one of `health_ports` for its /readyz."""
    ours = [*_servers(options), *_memory(options), *_learning(options), *_sampling(options)]
    placed = [_placed(spec, options, next(health_ports)) for spec in ours]
    if options.autoscale is not None:
        addresses = [spec.env["TBA_HEALTH_ADDRESS"] for spec in placed if spec.name in generator_names(options)]
        placed.append(_placed(_autoscaler(options, addresses), options, next(health_ports)))
    return placed


def generator_names(options: StackOptions) -> list[str]:
    """Every generator there may be, in the order they come and go."""
    return [f"tba-generator-{index}" for index in range(options.most_generators)]


def process_count_file(options: StackOptions) -> Path:
    """What tells the generators how many of them read now."""
    return options.directory / "generators"


def kafka_servers(options: StackOptions) -> str:
    """Bootstrap servers of the stack's broker."""
    return f"{LOOPBACK}:{options.kafka_port}"


def database_url(options: StackOptions, role: str | None = None) -> str:
    """SQLAlchemy URL of the stack's database: its owner's, or that of a role's login."""
    return postgres.url(options.directory / "postgres", options.postgres_port, role=role)


def _servers(options: StackOptions) -> Iterator[ProcessSpec]:
    place = ("--directory", str(options.directory / "postgres"), "--port", str(options.postgres_port))
    logins = (f"--login={role}" for role in (_API_ROLE, _BUFFER_ROLE))
    yield ProcessSpec(
        name="postgres",
        command=_python("tba_cli.local.postgres", *place, *logins),
        grace_seconds=30.0,  # it writes everything to disk
    )
    yield ProcessSpec(
        name="kafka-broker",
        command=_python("tba_cli.local.kafka_broker", "--port", str(options.kafka_port)),
        with_previous=True,
    )


def _memory(options: StackOptions) -> Iterator[ProcessSpec]:
    owner, api, buffer = ({"TBA_DATABASE_URL": database_url(options, role)} for role in (None, _API_ROLE, _BUFFER_ROLE))
    yield ProcessSpec(
        name="migrate",
        command=_python("services.buffer", "migrate"),
        env=owner,
        finite=True,
        next_when_done=True,
    )
    yield ProcessSpec(
        name="tba-api",
        command=_python("services.buffer", "api"),
        env={**api, "TBA_API_ADDRESS": f"{LOOPBACK}:{options.api_port}"},
    )
    yield ProcessSpec(name="tba-buffer", command=_python("services.buffer", "serve"), env=buffer, with_previous=True)


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
    for scorer in options.scorers:
        for index in range(count := options.count(scorer)):
            yield ProcessSpec(
                name=f"tba-reward-{scorer}-{index}",
                command=_python("services.reward", scorer),
                env={**_share(index, count), **_ONE_THREAD},
                ready_seconds=_LOADING_SECONDS,
                with_previous=True,
            )


def _sampling(options: StackOptions) -> Iterator[ProcessSpec]:
    share = _share if options.autoscale is None else partial(_moving_share, process_count_file(options))
    for index, name in enumerate(generator_names(options)):
        yield ProcessSpec(
            name=name,
            command=(options.generator_python, "-m", "services.generator", "worker"),
            env={**share(index, options.most_generators), **_weights(options), **_ONE_THREAD},
            ready_seconds=_LOADING_SECONDS,
            with_previous=index > 0,
            grace_seconds=30.0,  # it finishes what it samples, or hands it back
            parked=index >= options.first_generators,
        )


def _autoscaler(options: StackOptions, addresses: Sequence[str]) -> ProcessSpec:
    assert options.autoscale is not None
    fewest, most = options.autoscale
    patience = {"TBA_INTERVAL_SECONDS": "5", "TBA_SETTLE_SECONDS": "60", "TBA_DOWN_AFTER_SECONDS": "180"}
    return ProcessSpec(
        name="tba-autoscaler",
        command=_python("services.generator", "autoscaler"),
        env={
            "TBA_API_URL": f"http://{LOOPBACK}:{options.api_port}",
            "TBA_GENERATOR_ADDRESSES": ",".join(addresses),
            "TBA_MIN_REPLICAS": str(fewest),
            "TBA_MAX_REPLICAS": str(most),
            **patience,  # processes start faster than pods, and cost less
        },
    )


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)


def _weights(options: StackOptions) -> dict[str, str]:
    return {"TBA_WEIGHTS_URL": str(options.directory / "weights")}


def _share(index: int, count: int) -> dict[str, str]:
    return {"TBA_SHARING": "static", "TBA_PROCESS_INDEX": str(index), "TBA_PROCESS_COUNT": str(count)}


def _moving_share(file: Path, index: int, count: int) -> dict[str, str]:
    return {**_share(index, count), "TBA_PROCESS_COUNT_FILE": str(file)}


def _placed(spec: ProcessSpec, options: StackOptions, health_port: int) -> ProcessSpec:
    """Add what every process needs, and what the options say about this one."""
    health = f"{LOOPBACK}:{health_port}"
    env = {
        "PYTHONUNBUFFERED": "1",
        "TBA_RUN_ID": options.run_id,
        "TBA_KAFKA_SERVERS": kafka_servers(options),
        "TBA_HEALTH_ADDRESS": health,
        "TBA_SCORERS": ",".join(options.scorers),
        **spec.env,
        **options.env.get(re.sub(r"-\d+$", "", spec.name), {}),
    }
    return replace(spec, env=env, ready=None if spec.next_when_done else partial(is_ready, health))
