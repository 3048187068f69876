"""Preference tuning in miniature: summaries of short posts, by a tiny policy under two reward models made here.

The policy is trained under a proxy reward model that saw few comparisons, and measured under a gold one that saw many:
how often is its summary preferred to a person's? (arXiv:2503.18929, section 5.2, with TL;DR in place of our posts.)
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from tba_cli.presets import posts
from tba_cli.presets.preset import Made, Measure, Preset, Start, run_learner, tiny_learner, train_reward_models
from tba_common.tasks import Combination, Evaluation, PromptSpec, Sampling, ScorerTerm, Target, Task

TRAINED_ON: Final = 2_000
HELD_OUT: Final = 200
_WRITTEN: Final = 6_000  # summaries that the supervised start reads
_GOLD_PAIRS: Final = 6_000
_PROXY_PAIRS: Final = 600
_CARE_OF_REFERENCES: Final = 0.4  # or more: a person's summary is better than the average one
_GOLD: Final = "reward_model.gold"


def problems(seed: int) -> list[PromptSpec]:
    """Return posts to train on and posts held out, each with a person's summary."""
    random_ = random.Random(seed)  # noqa: S311  # a world, not a secret
    found: dict[str, posts.Post] = {}
    while len(found) < TRAINED_ON + HELD_OUT:
        post = posts.new_post(random_)
        found.setdefault(post.text, post)
    return [
        PromptSpec(
            text=text,
            reference=posts.summary(post, random_.uniform(_CARE_OF_REFERENCES, 1), random_),
            key=f"post-{place}",
            split="eval" if place < HELD_OUT else "train",
        )
        for place, (text, post) in enumerate(found.items())
    ]


def make(start: Start) -> Made:
    """A policy that writes as people do, good and bad, and two reward models that started as it."""
    random_ = random.Random(1)  # noqa: S311
    held_out = {prompt.text for prompt in start.prompts if prompt.split == "eval"}
    policy = _policy(start, random_)
    gold, proxy = start.directory / "gold", start.directory / "proxy"
    start.say(f"[bold]Reward models[/]: gold from {_GOLD_PAIRS:,} comparisons, proxy from {_PROXY_PAIRS:,}")
    data = {model: start.directory / f"{model.name}.jsonl" for model in (gold, proxy)}
    _write(data[gold], _pairs(_GOLD_PAIRS, held_out, random_))
    _write(data[proxy], _pairs(_PROXY_PAIRS, held_out, random_))
    common = ("--model", policy, "--batch", 32)
    train_reward_models(
        (*common, "--data", data[gold], "--out", gold, "--epochs", 2, "--learning-rate", 3e-4),
        (*common, "--data", data[proxy], "--out", proxy, "--epochs", 3, "--learning-rate", 3e-4),
    )
    models = {"tba-reward-reward_model": proxy, f"tba-reward-{_GOLD}": gold, "tba-reward-reference": policy}
    return Made(policy=policy, environment={name: {"TBA_MODEL": str(model)} for name, model in models.items()})


def environment(steps: int) -> dict[str, dict[str, str]]:
    """The settings of each process."""
    buffer = {"TBA_GROUPS_PER_BATCH": "16", "TBA_TRAJECTORIES_PER_GROUP": "8", "TBA_MIN_SIZE": "128"}
    return {"tba-learner": tiny_learner(steps), "tba-buffer": buffer}


def _policy(start: Start, random_: random.Random) -> Path:
    start.say(f"[bold]Supervised start[/] of a tiny policy on {_WRITTEN:,} summaries")
    vocabulary, data = start.directory / "words.txt", start.directory / "supervised.jsonl"
    vocabulary.write_text(posts.words())
    held_out = {prompt.text for prompt in start.prompts if prompt.split == "eval"}
    written = (_other_post(held_out, random_) for _ in range(_WRITTEN))
    _write(data, ({"text": p.text, "reference": posts.summary(p, random_.random(), random_)} for p in written))
    tiny, made = start.directory / "tiny", start.directory / "start"
    run_learner("tiny", "--words-of", vocabulary, "--out", tiny)
    run_learner("supervised", "--model", tiny, "--data", data, "--steps", 250, "--batch", 64, "--out", made)
    return made


def _pairs(count: int, held_out: set[str], random_: random.Random) -> Iterable[Mapping[str, str]]:
    made = 0
    while made < count:
        post = _other_post(held_out, random_)
        one, other = (posts.summary(post, random_.random(), random_) for _ in range(2))
        if one != other:
            made += 1
            chosen, rejected = (one, other) if posts.prefers_first(post, one, other, random_) else (other, one)
            yield {"prompt": post.text, "chosen": chosen, "rejected": rejected}


def _other_post(held_out: set[str], random_: random.Random) -> posts.Post:
    while (post := posts.new_post(random_)).text in held_out:
        pass
    return post


def _write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


PRESET: Final = Preset(
    name="preference",
    directory=Path("runs/demo-preference"),
    task=Task(
        name="summaries",
        family="preference",
        reward=(ScorerTerm(scorer="reward_model"),),
        combination=Combination(non_eos_reward=-1.0),
        sampling=Sampling(completions=8, temperature=1.0, max_new_tokens=24),
        target=Target(beta=0.3),
        evaluation=Evaluation(
            completions=2,
            temperature=1.0,
            reward=(
                ScorerTerm(scorer=_GOLD, options={"output": "win"}),
                ScorerTerm(scorer="reward_model", weight=0.0),
                ScorerTerm(scorer="reference", weight=0.0),
            ),
        ),
        evaluate_every_versions=20,
    ),
    problem_format=posts.FORMAT,
    problems=problems,
    make=make,
    steps=120,
    generators=1,
    environment=environment,
    stall_seconds=180.0,
    evaluation_seconds=180.0,
    measure=Measure(
        name="Win rate under the gold reward model",
        of="held-out posts",
        score=f"{_GOLD}.win",
        beside=("kl", "reward_model.score", f"{_GOLD}.score"),
    ),
)
