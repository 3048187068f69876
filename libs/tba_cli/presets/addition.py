"""Two-digit addition, for a tiny policy made here: right two thirds of the time after its supervised start."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Final

from tba_cli.presets.preset import Made, Preset, Start, run_learner
from tba_common.tasks import PromptSpec, Sampling, ScorerTerm, Target, Task

PROMPT_FORMAT: Final = "{a:02d}+{b:02d}="
HELD_OUT: Final = 600
START_ACCURACY: Final = 0.68
_SUPERVISED_STEPS: Final = 600  # at most: it ends once it is right often enough


def problems(seed: int) -> list[PromptSpec]:
    """Return every pair of two-digit numbers: those to train on, and HELD_OUT never trained on."""
    pairs = [(a, b) for a in range(100) for b in range(100)]
    random.Random(seed).shuffle(pairs)  # noqa: S311  # a split, not a secret
    return [*_prompts(pairs[HELD_OUT:], "train"), *_prompts(pairs[:HELD_OUT], "eval")]


def _prompts(pairs: list[tuple[int, int]], split: str) -> list[PromptSpec]:
    return [
        PromptSpec(text=PROMPT_FORMAT.format(a=a, b=b), reference=str(a + b), key=f"{a}+{b}", split=split)
        for a, b in pairs
    ]


def supervised_start(start: Start) -> Path:
    """Make the policy that RL starts from: right about half to two thirds of the time."""
    data = start.directory / "supervised.jsonl"
    lines = ({"text": p.text, "reference": p.reference} for p in start.prompts if p.split == "train")
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tiny, made = start.directory / "tiny", start.directory / "start"
    start.say(f"[bold]Supervised start[/] of a tiny policy, until it is right {START_ACCURACY:.0%} of the time")
    run_learner("tiny", "--out", tiny)
    bounds = ("--steps", _SUPERVISED_STEPS, "--batch", 128, "--until-accuracy", START_ACCURACY)
    run_learner("supervised", "--model", tiny, "--data", data, *bounds, "--out", made)
    return made


def make(start: Start) -> Made:
    """Nothing but the policy."""
    return Made(policy=supervised_start(start))


def environment(steps: int) -> dict[str, dict[str, str]]:
    """The settings of each process."""
    warmup, decay = 10, steps * 4 // 7  # the decay settles a small policy on the noise of small batches
    learner = {
        "TBA_MAX_STEPS": str(steps),
        "TBA_LEARNING_RATE": "3e-5",
        "TBA_LEARNING_RATE_SCHEDULE": f"{warmup}/{max(steps - warmup - decay, 0)}/{decay}",
        "TBA_PUBLISH_EVERY": "1",
        "TBA_CHECKPOINT_EVERY": "20",
        "TBA_KEEP_VERSIONS": "100",  # an evaluation must find its version, and they come fast here
    }
    return {"tba-learner": learner, "tba-buffer": {"TBA_GROUPS_PER_BATCH": "32"}}


PRESET: Final = Preset(
    name="addition",
    directory=Path("runs/demo"),
    task=Task(
        name="addition",
        family="math",
        reward=(ScorerTerm(scorer="verifier", options={"match": "exact"}),),
        sampling=Sampling(completions=16, temperature=1.0, max_new_tokens=5),
        target=Target(beta=0.1),
        evaluate_every_versions=20,
    ),
    problem_format=PROMPT_FORMAT,
    problems=problems,
    make=make,
    steps=500,
    generators=2,
    environment=environment,
    stall_seconds=120.0,
    evaluation_seconds=120.0,
)
