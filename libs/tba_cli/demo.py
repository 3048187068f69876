"""`tba demo`: the whole platform on one machine, teaching what a preset says, watched from start to report.

Makes or takes a policy, brings the stack up, posts the preset's task through the REST API, watches it train,
evaluates held-out problems on the same line, and leaves a report and the trained policy.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from tba_cli.answers import Evaluation, Status
from tba_cli.client import Client
from tba_cli.intervals import wilson
from tba_cli.local.stack import Stack, StackOptions
from tba_cli.presets import addition, smollm2
from tba_cli.presets.preset import DemoError, Preset, Start
from tba_cli.report import Curves, Report, write_report
from tba_common.tasks import PromptSpec

PRESETS: Final = {preset.name: preset for preset in (addition.PRESET, smollm2.PRESET)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What, where and how long. None is what the preset says."""

    preset: str = addition.PRESET.name
    model: str | None = None  # a Hugging Face folder or id
    directory: Path | None = None
    steps: int | None = None
    generators: int | None = None
    generator_python: str = sys.executable
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """A demo about to start: its preset, with every choice made."""

    preset: Preset
    directory: Path
    steps: int
    prompts: Sequence[PromptSpec]
    model: str
    preparation_seconds: float

    @property
    def held_out(self) -> int:
        return sum(prompt.split == "eval" for prompt in self.prompts)

    @property
    def task(self) -> str:
        return self.preset.task.name

    def is_complete(self, evaluation: Evaluation) -> bool:
        """Whether every held-out problem has been answered as often as it should."""
        answers = self.held_out * self.preset.task.evaluation.completions
        return evaluation.n == evaluation.n_expected == answers


def main(options: DemoOptions | None = None, console: Console | None = None) -> Report:
    """Run the demo and return its report, which also lies in the directory."""
    options = options or DemoOptions()
    console = console or Console()
    began = time.monotonic()
    plan = _prepare(options, PRESETS[options.preset], console)
    stack_options = StackOptions(
        directory=plan.directory / "stack",
        model=plan.model,
        run_id="demo",
        generators=options.generators or plan.preset.generators,
        generator_python=options.generator_python,
        env=plan.preset.environment(plan.steps),
    )
    console.print("[bold]Starting the platform[/] (logs in", f"{stack_options.directory / 'logs'})")
    with Stack(stack_options) as stack, Client(stack.url, attempts=9) as client:
        processes = [{"name": name, "pid": pid} for name, pid in stack.pids().items()]
        console.print(f"  {len(processes)} processes run; watch them at {stack.url}")
        client.post_task(plan.preset.task, plan.prompts)
        client.evaluate(plan.task, 0)
        _follow(stack, client, plan, console)
        newest = _finish(stack, client, plan, console)
        report, curves = _collect(client, plan, processes, stack.restarts(), newest, began)
        _keep_policy(stack.directory / "weights" / f"v{newest:06d}", plan.directory / "policy")
    write_report(plan.directory, report, curves)
    _say(report, plan.directory, console)
    return report


def _prepare(options: DemoOptions, preset: Preset, console: Console) -> _Plan:
    began = time.monotonic()
    directory = options.directory or preset.directory
    prompts = preset.problems(options.seed)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    start = Start(directory=directory, models=directory.parent / "models", prompts=prompts, say=console.print)
    return _Plan(
        preset=preset,
        directory=directory,
        steps=options.steps or preset.steps,
        prompts=prompts,
        model=options.model or str(preset.policy(start)),
        preparation_seconds=time.monotonic() - began,
    )


def _follow(stack: Stack, client: Client, plan: _Plan, console: Console) -> None:
    """Show progress until the learner has taken its last step."""
    step, moved_at, shown_at = -1, time.monotonic(), 0.0
    while not stack.learner_is_done():
        status = client.status()
        now = time.monotonic()
        if status.step != step:
            step, moved_at = status.step, now
        if now - moved_at > plan.preset.stall_seconds:
            raise DemoError(f"no step for {now - moved_at:.0f} s after step {step}: {status.waiting_for}")
        if now - shown_at >= 5:
            shown_at = now
            console.print(_progress(client, status, plan), highlight=False, soft_wrap=True)
        time.sleep(0.5)


def _progress(client: Client, status: Status, plan: _Plan) -> str:
    recent = client.steps(after=max(status.step - 10, -1))
    reward = f"{sum(step.reward for step in recent) / len(recent):.2f}" if recent else "-"
    scored = [e for e in client.evaluations(plan.task) if plan.is_complete(e)]
    accuracy = f"{scored[-1].accuracy:.1%} (v{scored[-1].policy_version})" if scored else "-"
    age = status.staleness.mean_versions
    waits = "" if status.state == "running" else f"  {status.waiting_for}"
    return (
        f"  step {status.step:>3}/{plan.steps}  v{status.policy_version or 0:<3}  reward {reward:>4}  "
        f"held-out {accuracy:<12}  staleness {age or 0:3.1f}  "
        f"{status.rates.trajectories_per_minute:>6,} trajectories/min{waits}"
    )


def _finish(stack: Stack, client: Client, plan: _Plan, console: Console) -> int:
    """Stop ordering completions, evaluate the newest version, and let the line run empty."""
    client.pause(plan.task)
    newest = client.status().policy_version
    if newest is None:
        raise DemoError("no policy version was ever published")
    console.print(f"[bold]Evaluating[/] version {newest} on {plan.held_out} held-out problems")
    client.evaluate(plan.task, newest)

    def done() -> bool:
        complete = {e.policy_version for e in client.evaluations(plan.task) if plan.is_complete(e)}
        return {0, newest} <= complete and client.status().ledger.in_flight == 0

    stack.wait_for(done, seconds=plan.preset.evaluation_seconds, what="complete evaluation and empty line")
    return newest


def _collect(
    client: Client,
    plan: _Plan,
    processes: Sequence[dict[str, object]],
    restarts: dict[str, int],
    newest: int,
    began: float,
) -> tuple[Report, Curves]:
    steps = client.steps()
    status = client.status()
    accuracy = {e.policy_version: e.accuracy for e in client.evaluations(plan.task) if plan.is_complete(e)}
    before, after = accuracy[0], accuracy[newest]
    if before is None or after is None:
        raise DemoError("an evaluation has no accuracy")
    staleness: Counter[int] = Counter()
    for step in steps:
        staleness.update({int(age): count for age, count in step.staleness_versions.items()})
    seconds = time.monotonic() - began
    sampling = plan.preset.task.evaluation
    first = steps[0].created_at
    report = Report(
        accuracy_before=before,
        accuracy_after=after,
        interval_before=wilson(before, plan.held_out),
        interval_after=wilson(after, plan.held_out),
        held_out_problems=plan.held_out,
        answers_per_problem=sampling.completions,
        evaluation="greedy" if sampling.temperature == 0 else f"sampled at temperature {sampling.temperature:g}",
        steps=len(steps),
        policy_versions=client.generator_versions(plan.task),
        trajectories=status.ledger.stored,
        duplicates=status.ledger.duplicates,
        dead_letters=status.queues.dead_letters,
        staleness={str(age): staleness[age] for age in sorted(staleness)},
        seconds=round(seconds, 1),
        seconds_of_preparation=round(plan.preparation_seconds, 1),
        completions_per_second=round(status.ledger.issued / (seconds - plan.preparation_seconds), 1),
        ledger=status.ledger.model_dump(exclude={"balances"}),
        processes=processes,
        restarts=restarts,
        prompt_format=plan.preset.problem_format,
        run_id=status.run_id,
        preset=plan.preset.name,
        model=plan.model,
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
        f"({report.held_out_problems} problems, {report.evaluation}) "
        f"in {report.steps} steps, {report.policy_versions} policy versions, {report.seconds:.0f} s"
    )
    console.print(f"  report  {directory / 'report.html'} (figures in report.json)")
    console.print(f"  policy  {directory / 'policy'} (Hugging Face format)")
