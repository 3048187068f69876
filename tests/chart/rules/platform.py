"""What the chart tells our processes must be what they understand: settings, commands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

from tba_common.settings import ServiceSettings
from tests.chart.rules.rule import Manifests, Pod, Rule, pod, pods, variables
from tests.chart.settings_schema import FILES
from tests.chart.settings_schema import variables as read_by

#: Variables of libraries and of the platforms below us, and who reads them.
FOREIGN: Final = {
    "PGPASSWORD": "libpq",
    "HF_TOKEN": "the hub's client",
    "HF_HUB_OFFLINE": "the hub's client",
    "AWS_ENDPOINT_URL": "the S3 client",
    "OMP_NUM_THREADS": "torch",
    "NCCL_DEBUG": "NCCL, under torch",
    "TBA_URL": "the command line",
    "TBA_API_KEY": "the command line",
    "TZ": "the C library",
}
SHARED: Final = {f"TBA_{field}".upper() for field in ServiceSettings.model_fields}
#: Jobs and init containers that run a process of another component.
_LIKE: Final = {"migrate": "buffer", "learner-follower": "learner"}


def a_setting_is_one_that_its_process_reads(manifests: Manifests) -> Iterator[str]:
    """An unknown TBA_ variable is silently ignored by the process: it must be caught here."""
    for found in pods(manifests):
        for container in found.containers:
            if not _is_ours(container):
                continue
            known = SHARED | FOREIGN.keys() | _own(found, container)
            for name in variables(container).keys() - known:
                yield f"{found.name} {container['name']}: {name} is read by nobody"


def a_command_exists(manifests: Manifests) -> Iterator[str]:
    for found in pods(manifests):
        for container in found.containers:
            for args in _commands(container["args"]) if _is_ours(container) else ():
                if fault := fault_of(tuple(args)):
                    yield f"{found.name} {container['name']}: {fault}"


def a_process_waits_for_what_it_needs(manifests: Manifests) -> Iterator[str]:
    """Otherwise it crashes until that is there, and a fresh install looks broken."""
    for found in pods(manifests):
        waits = {container["args"][0] for container in found.spec.get("initContainers", [])}
        needs = {"TBA_DATABASE_URL": "services.buffer", "TBA_WEIGHTS_URL": "tba_common.topics"}
        for name, waiter in needs.items():
            is_service = found.owner["kind"] in ("Deployment", "StatefulSet")
            if is_service and name in variables(found.spec["containers"][0]) and waiter not in waits:
                yield f"{found.name} has {name} and does not wait"


def every_process_knows_the_same_scorers(manifests: Manifests) -> Iterator[str]:
    """Topics that are not made, or a task that is taken and never scored, are what another list would come to."""
    told = [
        (found, variables(c).get("TBA_SCORERS")) for found in pods(manifests) for c in found.containers if _is_ours(c)
    ]
    names = {scorers for _, scorers in told if scorers is not None}
    if len(names) > 1:
        yield from (f"{found.name} is told of {scorers}" for found, scorers in told)
    for component in {"api", "buffer", "topics", "kafka"} & {found.component for found, _ in told}:
        if (component, None) in {(found.component, scorers) for found, scorers in told}:
            yield f"{component} is told of no scorers"


def _commands(args: list[str]) -> list[list[str]]:
    """What runs, and what it runs in turn: torchrun has the process behind -m."""
    at = args.index("-m") if "-m" in args else len(args)
    return [args[:at], *([args[at + 1 :]] if at < len(args) else [])]


def _is_ours(container: dict[str, Any]) -> bool:
    return "tba" in container["image"] and "args" in container


def _own(found: Pod, container: dict[str, Any]) -> set[str]:
    component = _LIKE.get(found.component, found.component)
    if container["args"][0] == "services.buffer":
        return read_by("buffer") | read_by("api")
    component = "scorer" if component.startswith("reward-") else component
    return read_by(component) if component in FILES else set()


@cache
def fault_of(args: tuple[str, ...]) -> str:
    """Ask the command itself, with --help in the place of its last words; and it must know every option."""
    module, *rest = args
    if find_spec(module) is None:
        return f"no module {module}"
    commands = [word for word in rest[:1] if not word.startswith("-")]
    command = [sys.executable, "-m", module, *commands, "--help"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    options = [word for word in rest if word.startswith("--") and word not in asked.stdout]
    return asked.stderr.strip()[-200:] if asked.returncode else f"unknown {options}" if options else ""


def _main(manifests: Manifests, component: str) -> dict[str, Any]:
    container: dict[str, Any] = pod(manifests, component).spec["containers"][0]
    return container


RULES: Final = (
    Rule(
        a_setting_is_one_that_its_process_reads,
        lambda m: _main(m, "buffer")["env"].append({"name": "TBA_GROUPS_PER_BACH", "value": "8"}),
    ),
    Rule(a_command_exists, lambda m: _main(m, "buffer").update(args=["services.buffer", "server"])),
    Rule(a_process_waits_for_what_it_needs, lambda m: pod(m, "buffer").spec.pop("initContainers")),
    Rule(
        every_process_knows_the_same_scorers,
        lambda m: _main(m, "topics")["env"].append({"name": "TBA_SCORERS", "value": "verifier,judge"}),
    ),
)
