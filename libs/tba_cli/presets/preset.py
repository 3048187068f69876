"""What a demo is made of: a task with its problems, a policy to start from, and how two cores get it done."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tba_common.tasks import PromptSpec, Task


class DemoError(Exception):
    """The demo could not finish; says what was awaited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a preset may use to make its first policy."""

    directory: Path  # of this run
    models: Path  # kept from run to run
    prompts: Sequence[PromptSpec]
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Frozen choices; what may differ from run to run is an option of the demo.

    Args:
        problem_format: how a problem reads, with its numbers in braces.
        problems: from a seed to every problem once, in its split.
        policy: makes the policy to start from and returns its folder.
        environment: from the number of steps to the settings of each process, by its name.
    """

    name: str
    directory: Path
    task: Task
    problem_format: str
    problems: Callable[[int], list[PromptSpec]]
    policy: Callable[[Start], Path]
    steps: int
    generators: int
    environment: Callable[[int], Mapping[str, Mapping[str, str]]]
    stall_seconds: float  # without a step for so long, something is wrong
    evaluation_seconds: float


def run_learner(*arguments: object) -> None:
    """Run a command of the learner's room in a process of its own.

    Raises:
        DemoError: it failed.
    """
    command = [sys.executable, "-m", "services.learner", *map(str, arguments)]
    # Two threads that wait for each other on a busy machine are slower than one; and a bar is not for a report.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    if (code := subprocess.run(command, check=False, env=environment).returncode) != 0:
        raise DemoError(f"`{' '.join(command[1:])}` ended with exit code {code}")
