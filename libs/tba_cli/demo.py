"""`tba demo`: the whole platform on one machine, teaching what a preset says, watched from start to report.

Makes or takes a policy, brings the stack up, posts the preset's task through the REST API, watches it train,
evaluates held-out problems on the same line, and leaves a report and the trained policy.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from tba_cli.answers import Status
from tba_cli.client import Client
from tba_cli.demo_figures import Plan, collect, measured
from tba_cli.escapes import visible
from tba_cli.local.stack import AlreadyRunning, Stack, StackOptions, is_running
from tba_cli.presets import addition, math, preference, redteam, smollm2
from tba_cli.presets.preset import DemoError, Made, Preset, Start
from tba_cli.report import Report, write_report
from tba_cli.request_calls import seed_task

PRESETS: Final = {
    preset.name: preset for preset in (addition.PRESET, math.PRESET, preference.PRESET, redteam.PRESET, smollm2.PRESET)
}


_MARK: Final = ".tba-demo"  # of a directory that the next demo may empty


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


def main(
    options: DemoOptions | None = None, console: Console | None = None, *, told: threading.Event | None = None
) -> Report:
    """Run the demo and return its report, which also lies in the directory.

    Raises:
        KeyboardInterrupt: `told`, which says that it should end, is set; the platform has been stopped.
    """
    options = options or DemoOptions()
    console = console or Console()
    told = told or threading.Event()
    began = time.monotonic()
    plan = _prepare(options, PRESETS[options.preset], console)
    stack_options = StackOptions(
        directory=plan.directory / "stack",
        model=plan.model,
        run_id="demo",
        generators=options.generators or plan.preset.generators,
        generator_python=options.generator_python,
        scorers=plan.preset.scorers,
        env=plan.environment,
    )
    console.print("[bold]Starting the platform[/] (logs in", f"{stack_options.directory / 'logs'})")
    with Stack(stack_options) as stack, Client(stack.url, attempts=9) as client:
        processes = [{"name": name, "pid": pid} for name, pid in stack.pids().items()]
        console.print(f"  {len(processes)} processes run; watch them at {stack.url}")
        client.post_task(plan.preset.task, plan.prompts)
        if seeds := plan.preset.seeds():
            seed_task(client, plan.task, [{"key": key, "answer": answer} for key, answer in seeds])
        client.evaluate(plan.task, 0)
        _follow(stack, client, plan, console, told)
        newest = _finish(stack, client, plan, console, told)
        seconds = time.monotonic() - began
        report, curves = collect(client, plan, processes, stack.restarts(), newest=newest, seconds=seconds)
        _keep_policy(stack.directory / "weights" / f"v{newest:06d}", plan.directory / "policy")
    write_report(plan.directory, report, curves)
    _say(report, plan.directory, console)
    return report


def _prepare(options: DemoOptions, preset: Preset, console: Console) -> Plan:
    began = time.monotonic()
    directory = options.directory or preset.directory
    prompts = preset.problems(options.seed)
    _empty(directory)
    start = Start(directory=directory, models=directory.parent / "models", prompts=prompts, say=console.print)
    if options.model and not preset.has_only_a_policy:
        raise DemoError(f"--model: preset {preset.name} makes models that fit its own policy")
    made = Made(policy=Path(options.model)) if options.model else preset.make(start)
    steps = options.steps or preset.steps
    return Plan(
        preset=preset,
        directory=directory,
        steps=steps,
        prompts=prompts,
        model=options.model or str(made.policy),
        environment=_together(preset.environment(steps), made.environment),
        preparation_seconds=time.monotonic() - began,
    )


def _empty(directory: Path) -> None:
    """Make an empty directory of one that is not there, is empty, or has an earlier demo; no other is emptied.

    Raises:
        AlreadyRunning: a demo runs in it.
        DemoError: it has something else.
    """
    mark = directory / _MARK
    if directory.exists() and any(directory.iterdir()):
        if not mark.exists() and not (directory / "stack").is_dir():
            raise DemoError(
                f"{directory}: expected no directory, or an empty one, or an earlier demo's; it is not emptied"
            )
        if is_running(directory / "stack"):
            raise AlreadyRunning(f"another demo is running in {directory}")
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _follow(stack: Stack, client: Client, plan: Plan, console: Console, told: threading.Event) -> None:
    """Show progress until the learner has taken its last step."""
    step, moved_at, shown_at = -1, time.monotonic(), 0.0
    while not stack.learner_is_done():
        _heed(told)
        status = client.status()
        now = time.monotonic()
        if status.step != step:
            step, moved_at = status.step, now
        if now - moved_at > plan.preset.stall_seconds:
            raise DemoError(f"no step for {now - moved_at:.0f} s after step {step}: {status.waiting_for}")
        if now - shown_at >= 5:
            shown_at = now
            console.print(Text(visible(_progress(client, status, plan))), soft_wrap=True)
        time.sleep(0.5)


def _heed(told: threading.Event) -> None:
    """Raise once more what a signal raised where nobody heard it."""
    if told.is_set():
        raise KeyboardInterrupt


def _progress(client: Client, status: Status, plan: Plan) -> str:
    recent = client.steps(after=max(status.step - 10, -1))
    reward = f"{sum(step.reward for step in recent) / len(recent):.2f}" if recent else "-"
    scored = [e for e in client.evaluations(plan.task) if plan.is_complete(e)]
    held_out = f"{measured(scored[-1], plan.preset.measure):.1%} (v{scored[-1].policy_version})" if scored else "-"
    age = status.staleness.mean_versions
    waits = "" if status.state == "running" else f"  {status.waiting_for}"
    return (
        f"  step {status.step:>3}/{plan.steps}  v{status.policy_version or 0:<3}  reward {reward:>4}  "
        f"held-out {held_out:<12}  staleness {age or 0:3.1f}  "
        f"{status.rates.trajectories_per_minute:>6,} trajectories/min{waits}"
    )


def _finish(stack: Stack, client: Client, plan: Plan, console: Console, told: threading.Event) -> int:
    """Stop ordering completions, evaluate the newest version, and let the line run empty."""
    client.pause(plan.task)
    newest = client.status().policy_version
    if newest is None:
        raise DemoError("no policy version was ever published")
    console.print(f"[bold]Evaluating[/] version {newest} on {plan.held_out} held-out problems")
    client.evaluate(plan.task, newest)

    def done() -> bool:
        _heed(told)
        complete = {e.policy_version for e in client.evaluations(plan.task) if plan.is_complete(e)}
        return {0, newest} <= complete and client.status().ledger.in_flight == 0

    stack.wait_for(done, seconds=plan.preset.evaluation_seconds, what="complete evaluation and empty line")
    return newest


def _together(*environments: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Settings by process, from several places."""
    found: dict[str, dict[str, str]] = {}
    for environment in environments:
        for process, settings in environment.items():
            found.setdefault(process, {}).update(settings)
    return found


def _keep_policy(version: Path, policy: Path) -> None:
    shutil.copytree(version, policy, ignore=shutil.ignore_patterns("manifest.json"))


def _say(report: Report, directory: Path, console: Console) -> None:
    console.print(
        f"[bold]{report.measure} {report.before:.1%} -> {report.after:.1%}[/] "
        f"({report.measured_on}, {report.evaluation}) "
        f"in {report.steps} steps, {report.policy_versions} policy versions, {report.seconds:.0f} s"
    )
    for name, (before, after) in report.beside.items():
        console.print(
            f"  {name}  {'-' if before is None else f'{before:.3f}'} -> {'-' if after is None else f'{after:.3f}'}"
        )
    console.print(f"  report  {directory / 'report.html'} (figures in report.json)")
    console.print(f"  policy  {directory / 'policy'} (Hugging Face format)")
