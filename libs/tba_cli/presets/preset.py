"""What a demo is made of: a task with its problems, models to start from, and how two cores get it done."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tba_common.tasks import PromptSpec, Task


class DemoError(Exception):
    """The demo could not finish; says what was awaited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a preset may use to make its models."""

    directory: Path  # of this run
    models: Path  # kept from run to run
    prompts: Sequence[PromptSpec]
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a preset made: the policy to start from, and settings that name further models, by process."""

    policy: Path
    environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """The figure of an evaluation that should rise, a share or a probability.

    Args:
        name: as a sentence begins with it.
        of: what is answered.
        score: the name of a mean in the evaluation's scores; None is the accuracy.
        each_answer: whether each answer is a trial of its own, as where all answer one prompt, or each problem.
        beside: further figures to report: `kl`, `pass@4`, or names of scores.
    """

    name: str = "Accuracy"
    of: str = "held-out problems"
    score: str | None = None
    each_answer: bool = False
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Frozen choices; what may differ from run to run is an option of the demo.

    Args:
        problem_format: how a problem reads, with its numbers in braces.
        problems: from a seed to every problem once, in its split.
        make: makes the models to start from.
        environment: from the number of steps to the settings of each process, by its name.
        seeds: known answers to the task's training prompts, by the prompts' keys, to start the buffer with.
    """

    name: str
    directory: Path
    task: Task
    problem_format: str
    problems: Callable[[int], list[PromptSpec]]
    make: Callable[[Start], Made]
    steps: int
    generators: int
    environment: Callable[[int], Mapping[str, Mapping[str, str]]]
    stall_seconds: float  # without a step for so long, something is wrong
    evaluation_seconds: float
    measure: Measure = Measure()
    seeds: Callable[[], Sequence[tuple[str, str]]] = tuple

    @property
    def scorers(self) -> tuple[str, ...]:
        """The scorers that its task needs, each once."""
        terms = (*self.task.reward, *(self.task.evaluation.reward or ()))
        return tuple(dict.fromkeys(term.scorer for term in terms))

    @property
    def has_only_a_policy(self) -> bool:
        """Whether any policy will do, since no other model was made to fit it."""
        return self.scorers == ("verifier",)


def tiny_learner(steps: int) -> dict[str, str]:
    """The learner's settings for a tiny policy whose other models are as small: a version with every step."""
    return {
        "TBA_MAX_STEPS": str(steps),
        "TBA_LEARNING_RATE": "1e-4",
        "TBA_LEARNING_RATE_SCHEDULE": "10",
        "TBA_PUBLISH_EVERY": "1",
        "TBA_CHECKPOINT_EVERY": "20",
        "TBA_KEEP_VERSIONS": "100",  # an evaluation must find its version
    }


def run_learner(*arguments: object) -> None:
    """Run a command of the learner's room in a process of its own.

    Raises:
        DemoError: it failed.
    """
    _wait([_start("services.learner", *arguments)])


def train_reward_models(*trainings: Sequence[object]) -> None:
    """Train reward models side by side, each with its own arguments of `train-reward-model`.

    Raises:
        DemoError: one of them failed.
    """
    _wait([_start("services.reward", "train-reward-model", *arguments) for arguments in trainings])


def _start(module: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    # Two threads that wait for each other on a busy machine are slower than one; and a bar is not for a report.
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"})


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> None:
    codes = [process.wait() for process in running]
    for process, code in zip(running, codes, strict=True):
        if code != 0:
            assert isinstance(process.args, list)
            raise DemoError(f"`{' '.join(map(str, process.args[1:]))}` ended with exit code {code}")
