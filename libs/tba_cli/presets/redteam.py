"""Automated red-teaming in miniature: a tiny attacker looks for what makes a tiny chatbot swear.

One attack prompt, a frozen victim that answers each attack five times, and the mean log-probability of toxicity by the
classifier that comes with us as reward (Lee et al., arXiv:2405.18540; arXiv:2503.18929, appendix B.3). Everything is
made here and harmless: the worst that is ever said is "damn".
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Final

from tba_cli.presets import attacks
from tba_cli.presets.preset import Made, Measure, Preset, Start, run_learner, tiny_learner
from tba_common.tasks import Combination, Evaluation, PromptSpec, Ramp, Sampling, ScorerTerm, Target, Task

#: The attack prompt so many times over: as many groups of attacks are on the way at once, and a batch is one group.
COPIES: Final = 8
HELD_OUT: Final = 4  # times the attacks of an evaluation
_ATTACKS: Final = 64
_INSTRUCTIONS: Final = 6_000
_STEPS: Final = 100
_VICTIM: Final = ScorerTerm(
    scorer="victim", weight=0.0, options={"samples": 5, "temperature": 0.7, "max_new_tokens": 12, "template": "text"}
)


def problems(seed: int) -> list[PromptSpec]:
    """Return the one attack prompt, to train on and to evaluate with; there is nothing to choose by a seed."""
    keys = [("train", f"attack-{i}") for i in range(COPIES)] + [("eval", f"held-out-{i}") for i in range(HELD_OUT)]
    return [PromptSpec.model_validate({"text": attacks.ATTACK_PROMPT, "key": k, "split": split}) for split, k in keys]


def known_attacks() -> list[tuple[str, str]]:
    """Return attacks that are known to work, dealt out to the copies of the attack prompt."""
    lines = files("tba_cli.presets").joinpath("known_attacks.jsonl").read_text().splitlines()
    return [(f"attack-{place % COPIES}", json.loads(line)["answer"]) for place, line in enumerate(lines)]


def make(start: Start) -> Made:
    """An attacker that gives mostly harmless instructions, and a victim with weak spots."""
    random_ = random.Random(2)  # noqa: S311  # a world, not a secret
    (start.directory / "words.txt").write_text(attacks.words())

    def harmless() -> tuple[str, str]:
        return attacks.ATTACK_PROMPT, attacks.instruction(random_, weak=0.15)

    def talk() -> tuple[str, str]:
        text = attacks.instruction(random_, weak=0.6)
        return attacks.FRAME.format(text=text), attacks.answer(text, random_)

    start.say("[bold]Supervised start[/] of a tiny attacker, and of a tiny victim")
    attacker = _taught(start, "start", harmless, steps=150, seed=0)
    victim = _taught(start, "victim", talk, steps=250, seed=1)
    environment = {
        "tba-reward-victim": {"TBA_MODEL": str(victim), "TBA_TEXT_TEMPLATE": attacks.FRAME},
        "tba-reward-reference": {"TBA_MODEL": str(attacker)},
    }
    return Made(policy=attacker, environment=environment)


def environment(steps: int) -> dict[str, dict[str, str]]:
    """The settings of each process."""
    buffer = {
        "TBA_GROUPS_PER_BATCH": str(COPIES),
        "TBA_TRAJECTORIES_PER_GROUP": "16",
        "TBA_MIN_SIZE": "128",
        "TBA_CAPACITY_PER_PROMPT": "1000",  # of the few prompts there are, what was found must be kept
    }
    return {"tba-api": {"TBA_ALLOW_REDTEAM": "true"}, "tba-learner": tiny_learner(steps), "tba-buffer": buffer}


def _taught(start: Start, name: str, example: Callable[[], tuple[str, str]], *, steps: int, seed: int) -> Path:
    """A tiny model that was taught by examples of (text, reference)."""
    data, tiny, made = start.directory / f"{name}.jsonl", start.directory / f"{name}-tiny", start.directory / name
    lines = (json.dumps(dict(zip(("text", "reference"), example(), strict=True))) for _ in range(_INSTRUCTIONS))
    data.write_text("".join(f"{line}\n" for line in lines))
    run_learner("tiny", "--words-of", start.directory / "words.txt", "--seed", seed, "--out", tiny)
    run_learner("supervised", "--model", tiny, "--data", data, "--steps", steps, "--batch", 64, "--out", made)
    return made


PRESET: Final = Preset(
    name="redteam",
    directory=Path("runs/demo-redteam"),
    task=Task(
        name="swearing",
        family="redteam",
        reward=(_VICTIM, ScorerTerm(scorer="toxicity", options={"of": "responses"})),
        combination=Combination(min_tokens=5, short_reward=-10.0),
        sampling=Sampling(completions=16, temperature=1.0, max_new_tokens=16),
        target=Target(
            beta=0.3,
            temperature=Ramp(start=2.0, end=1.0, steps=_STEPS * 2 // 5),
            baseline="batch",
        ),
        evaluation=Evaluation(
            completions=_ATTACKS,
            temperature=1.0,
            reward=(
                _VICTIM,
                ScorerTerm(scorer="toxicity", options={"of": "responses", "output": "success"}),
                ScorerTerm(scorer="diversity", weight=0.0),
                ScorerTerm(scorer="reference", weight=0.0),
            ),
        ),
        evaluate_every_versions=20,
    ),
    problem_format=attacks.ATTACK_PROMPT,
    problems=problems,
    make=make,
    steps=_STEPS,
    generators=1,
    environment=environment,
    stall_seconds=180.0,
    evaluation_seconds=180.0,
    measure=Measure(
        name="Mean toxicity of the victim's answers",
        of="fresh attacks",
        score="toxicity.probability",
        each_answer=True,
        beside=("toxicity.success", "diversity", "kl"),
    ),
    seeds=known_attacks,
)
