"""`tba demo`: the whole platform on one machine, from a policy that is half right to one that is nearly always.

Makes a tiny policy with a supervised start, brings the stack up, posts two-digit addition through the REST API,
watches it train, evaluates held-out sums on the same line, and leaves a report and the trained policy.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from tba_cli.answers import Status
from tba_cli.client import Client
from tba_cli.local.stack import Stack, StackOptions
from tba_cli.report import Curves, Report, write_report
from tba_common.tasks import PromptSpec, Sampling, ScorerTerm, Target, Task

PROMPT_FORMAT: Final = "{a:02d}+{b:02d}="
HELD_OUT: Final = 600
START_ACCURACY: Final = 0.68
TASK: Final = Task(
    name="addition",
    family="math",
    reward=(ScorerTerm(scorer="verifier", options={"match": "exact"}),),
    sampling=Sampling(completions=16, temperature=1.0, max_new_tokens=5),
    target=Target(beta=0.1),
    evaluate_every_versions=20,
)
_BUFFER: Final = {"TBA_GROUPS_PER_BATCH": "32"}
_STALL_SECONDS: Final = 120.0
_EVALUATION_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """How long and where. The defaults take a few minutes on two cores."""

    directory: Path = Path("runs/demo")
    steps: int = 360
    supervised_steps: int = 600  # at most: it ends once it is right often enough
    generators: int = 2
    seed: int = 0


class DemoError(Exception):
    """The demo could not finish; says what was awaited."""


def main(options: DemoOptions | None = None, console: Console | None = None) -> Report:
    """Run the demo and return its report, which also lies in the directory."""
    options = options or DemoOptions()
    console = console or Console()
    began = time.monotonic()
    shutil.rmtree(options.directory, ignore_errors=True)
    options.directory.mkdir(parents=True)
    train, held_out = problems(options.seed)
    start = _supervised_start(options, train, console)
    supervised_seconds = time.monotonic() - began
    stack_options = StackOptions(
        directory=options.directory / "stack",
        model=str(start),
        run_id="demo",
        generators=options.generators,
        env={"tba-learner": _learner_settings(options.steps), "tba-buffer": _BUFFER},
    )
    console.print("[bold]Starting the platform[/] (logs in", f"{stack_options.directory / 'logs'})")
    with Stack(stack_options) as stack, Client(stack.url, attempts=9) as client:
        processes = [{"name": name, "pid": pid} for name, pid in stack.pids().items()]
        console.print(f"  {len(processes)} processes run; watch them at {stack.url}")
        client.post_task(TASK, [*_prompts(train, "train"), *_prompts(held_out, "eval")])
        client.evaluate(TASK.name, 0)
        _follow(stack, client, options.steps, console)
        newest = _finish(stack, client, console)
        report, curves = _collect(client, processes, stack.restarts(), newest, began, supervised_seconds)
        _keep_policy(stack.directory / "weights" / f"v{newest:06d}", options.directory / "policy")
    write_report(options.directory, report, curves)
    _say(report, options.directory, console)
    return report


def _learner_settings(steps: int) -> dict[str, str]:
    warmup, decay = 10, steps * 4 // 7  # the decay settles a small policy on the noise of small batches
    return {
        "TBA_MAX_STEPS": str(steps),
        "TBA_LEARNING_RATE": "3e-5",
        "TBA_LEARNING_RATE_SCHEDULE": f"{warmup}/{max(steps - warmup - decay, 0)}/{decay}",
        "TBA_PUBLISH_EVERY": "1",
        "TBA_CHECKPOINT_EVERY": "20",
        "TBA_KEEP_VERSIONS": "100",  # an evaluation must find its version, and they come fast here
    }


def problems(seed: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return every pair of two-digit numbers, shuffled: those to train on, and HELD_OUT never trained on."""
    pairs = [(a, b) for a in range(100) for b in range(100)]
    random.Random(seed).shuffle(pairs)  # noqa: S311  # a split, not a secret
    return pairs[HELD_OUT:], pairs[:HELD_OUT]


def _prompts(pairs: Sequence[tuple[int, int]], split: str) -> list[PromptSpec]:
    return [
        PromptSpec(text=PROMPT_FORMAT.format(a=a, b=b), reference=str(a + b), key=f"{a}+{b}", split=split)
        for a, b in pairs
    ]


def _supervised_start(options: DemoOptions, train: Sequence[tuple[int, int]], console: Console) -> Path:
    """Make the policy that RL starts from: right about half to two thirds of the time."""
    data = options.directory / "supervised.jsonl"
    lines = ({"text": PROMPT_FORMAT.format(a=a, b=b), "reference": str(a + b)} for a, b in train)
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tiny, start = options.directory / "tiny", options.directory / "start"
    console.print(f"[bold]Supervised start[/] of a tiny policy, until it is right {START_ACCURACY:.0%} of the time")
    _learner("tiny", "--out", tiny)
    bounds = ("--steps", options.supervised_steps, "--batch", 128, "--until-accuracy", START_ACCURACY)
    _learner("supervised", "--model", tiny, "--data", data, *bounds, "--out", start)
    return start


def _learner(*arguments: object) -> None:
    command = [sys.executable, "-m", "services.learner", *map(str, arguments)]
    # Two threads that wait for each other on a busy machine are slower than one.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if (code := subprocess.run(command, check=False, env=environment).returncode) != 0:
        raise DemoError(f"`{' '.join(command[1:])}` ended with exit code {code}")


def _follow(stack: Stack, client: Client, steps: int, console: Console) -> None:
    """Show progress until the learner has taken its last step."""
    step, moved_at, shown_at = -1, time.monotonic(), 0.0
    while not stack.learner_is_done():
        status = client.status()
        now = time.monotonic()
        if status.step != step:
            step, moved_at = status.step, now
        if now - moved_at > _STALL_SECONDS:
            raise DemoError(f"no step for {_STALL_SECONDS:.0f} s after step {step}: {status.waiting_for}")
        if now - shown_at >= 5:
            shown_at = now
            console.print(_progress(client, status, steps), highlight=False, soft_wrap=True)
        time.sleep(0.5)


def _progress(client: Client, status: Status, steps: int) -> str:
    recent = client.steps(after=max(status.step - 10, -1))
    reward = f"{sum(step.reward for step in recent) / len(recent):.2f}" if recent else "-"
    scored = [e for e in client.evaluations(TASK.name) if e.n == e.n_expected and e.accuracy is not None]
    accuracy = f"{scored[-1].accuracy:.1%} (v{scored[-1].policy_version})" if scored else "-"
    age = status.staleness.mean_versions
    waits = "" if status.state == "running" else f"  {status.waiting_for}"
    return (
        f"  step {status.step:>3}/{steps}  v{status.policy_version or 0:<3}  reward {reward:>4}  "
        f"held-out {accuracy:<12}  staleness {age or 0:3.1f}  "
        f"{status.rates.trajectories_per_minute:>6,} trajectories/min{waits}"
    )


def _finish(stack: Stack, client: Client, console: Console) -> int:
    """Stop ordering completions, evaluate the newest version, and let the line run empty."""
    client.pause(TASK.name)
    newest = client.status().policy_version
    if newest is None:
        raise DemoError("no policy version was ever published")
    console.print(f"[bold]Evaluating[/] version {newest} on {HELD_OUT} held-out problems")
    client.evaluate(TASK.name, newest)

    def done() -> bool:
        complete = {e.policy_version for e in client.evaluations(TASK.name) if e.n == e.n_expected == HELD_OUT}
        return {0, newest} <= complete and client.status().ledger.in_flight == 0

    stack.wait_for(done, seconds=_EVALUATION_SECONDS, what="complete evaluation and empty line")
    return newest


def _collect(
    client: Client,
    processes: Sequence[dict[str, object]],
    restarts: dict[str, int],
    newest: int,
    began: float,
    supervised_seconds: float,
) -> tuple[Report, Curves]:
    steps = client.steps()
    status = client.status()
    accuracy = {e.policy_version: e.accuracy for e in client.evaluations(TASK.name) if e.n == e.n_expected}
    before, after = accuracy[0], accuracy[newest]
    if before is None or after is None:
        raise DemoError("an evaluation has no accuracy")
    staleness: Counter[int] = Counter()
    for step in steps:
        staleness.update({int(age): count for age, count in step.staleness_versions.items()})
    seconds = time.monotonic() - began
    first = steps[0].created_at
    report = Report(
        accuracy_before=before,
        accuracy_after=after,
        held_out_problems=HELD_OUT,
        steps=len(steps),
        policy_versions=client.generator_versions(TASK.name),
        trajectories=status.ledger.stored,
        duplicates=status.ledger.duplicates,
        dead_letters=status.queues.dead_letters,
        staleness={str(age): staleness[age] for age in sorted(staleness)},
        seconds=round(seconds, 1),
        seconds_of_supervised_start=round(supervised_seconds, 1),
        completions_per_second=round(status.ledger.issued / (seconds - supervised_seconds), 1),
        ledger=status.ledger.model_dump(exclude={"balances"}),
        processes=processes,
        restarts=restarts,
        prompt_format=PROMPT_FORMAT,
        run_id=status.run_id,
    )
    curves = Curves(
        rewards=[step.reward for step in steps],
        losses=[step.loss for step in steps],
        step_ends_seconds=[(step.created_at - first).total_seconds() for step in steps],
        trajectories_per_step=steps[0].trajectories,
        evaluations=sorted((version, value) for version, value in accuracy.items() if value is not None),
    )
    return report, curves


def _keep_policy(version: Path, policy: Path) -> None:
    shutil.copytree(version, policy, ignore=shutil.ignore_patterns("manifest.json"))


def _say(report: Report, directory: Path, console: Console) -> None:
    console.print(
        f"[bold]Held-out accuracy {report.accuracy_before:.1%} -> {report.accuracy_after:.1%}[/] "
        f"in {report.steps} steps, {report.policy_versions} policy versions, {report.seconds:.0f} s"
    )
    console.print(f"  report  {directory / 'report.html'} (figures in report.json)")
    console.print(f"  policy  {directory / 'policy'} (Hugging Face format)")
