"""Answers on a terminal: tables and grids of rich. Every text that a model wrote is made visible first."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tba_cli.answers import Answer, Evaluation, Ledger, Status, StepAnswer, TaskAnswer, Trajectory
from tba_cli.escapes import shortened, visible

_COUNTS: Final = ("train", "held out", "issues", "trajectories", "steps", "reward")
_PROMPT_CHARACTERS: Final = 40
_TEXT_CHARACTERS: Final = 60


def answer(found: Answer | Sequence[Answer], page: RenderableType, *, as_json: bool) -> None:
    """Write an answer: `page` for people, or JSON for machines, an array where there are several."""
    if not as_json:
        Console(highlight=False, soft_wrap=not sys.stdout.isatty()).print(page)
    elif isinstance(found, Answer):
        print(json.dumps(found.model_dump(mode="json"), indent=2))  # noqa: T201  # ASCII: C1 controls are escaped too
    else:
        print(json.dumps([item.model_dump(mode="json") for item in found], indent=2))  # noqa: T201


def tasks_table(tasks: Sequence[TaskAnswer]) -> Table:
    """One row a task."""
    table = Table("name", "family", "state", *_COUNTS, box=None, header_style="bold")
    table.columns[0].overflow = "fold"  # a name is typed again: never cut it
    for column in table.columns[3:]:
        column.justify = "right"
    for task in tasks:
        done = task.progress
        counts = (done.prompts_train, done.prompts_eval, done.issues, done.trajectories, done.task_steps)
        table.add_row(
            Text(task.name), task.spec.family, task.state, *map(str, counts), number(done.recent_mean_reward, 3)
        )
    return table


def status_grid(status: Status) -> Table:
    """The run at one glance."""
    grid = Table.grid(padding=(0, 2))
    for name, value in _status_rows(status):
        grid.add_row(Text(name, style="bold"), Text(visible(value)))
    return grid


def evaluations_table(evaluations: Sequence[Evaluation]) -> Table:
    """One row an evaluation; figures that none of them has get no column."""
    names = list(dict.fromkeys(name for found in evaluations for name in found.scores))
    most = max((max(found.pass_at, default=1) for found in evaluations), default=1)
    has_kl = any(found.kl is not None for found in evaluations)
    more = [*([f"pass@{most}"] if most > 1 else []), *(["KL"] if has_kl else []), *names]
    table = Table("task", "version", "answers", "accuracy", "reward", *more, box=None, header_style="bold")
    for found in evaluations:
        answers = f"{found.n}/{found.n_expected}" + (f" ({found.n_lost} lost)" if found.n_lost else "")
        figures = [number(found.accuracy, 3), number(found.mean_reward, 3)]
        figures += [number(found.pass_at.get(most), 3)] if most > 1 else []
        figures += [number(found.kl, 3)] if has_kl else []
        figures += [number(found.scores.get(name), 3) for name in names]
        table.add_row(Text(found.task), str(found.policy_version), answers, *figures)
    return table


def trajectories_table(trajectories: Sequence[Trajectory]) -> Table:
    """One row a completion."""
    table = Table("version", "reward", "prompt", "completion", box=None, header_style="bold")
    for found in trajectories:
        prompt = Text(shortened(found.prompt, _PROMPT_CHARACTERS))
        text = Text(shortened(found.text, _TEXT_CHARACTERS))
        table.add_row(str(found.policy_version), number(found.reward, 2), prompt, text)
    return table


def run_page(
    status: Status,
    step: StepAnswer | None,
    evaluations: Sequence[Evaluation],
    trajectories: Sequence[Trajectory],
) -> RenderableType:
    """What `tba watch` shows."""
    parts: list[RenderableType] = [status_grid(status)]
    if step is not None:
        parts += [Text(), Text(step_line(step))]
    if evaluations:
        parts += [Text(), evaluations_table(evaluations)]
    if trajectories:
        parts += [Text(), trajectories_table(trajectories)]
    return Group(*parts)


def step_line(step: StepAnswer) -> str:
    """One optimiser step as one line."""
    total = sum(step.staleness_versions.values()) or 1
    staleness = sum(versions * count for versions, count in step.staleness_versions.items()) / total
    return (
        f"step {step.step}  version {step.policy_version}  reward {step.reward:.3f}  loss {step.loss:.4f}  "
        f"staleness {staleness:.2f}  log Z {step.log_z:.3f}  beta {step.beta:.3g}  {step.step_seconds:.2f} s"
    )


def number(value: float | None, digits: int) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def _status_rows(status: Status) -> list[tuple[str, str]]:
    rates, queues = status.rates, status.queues
    version = "none yet" if status.policy_version is None else str(status.policy_version)
    speed = f"{rates.trajectories_per_minute} trajectories and {rates.steps_per_minute} steps in the last minute"
    in_flight = f"{queues.prompts_in_flight} prompts, {queues.batches_in_flight} batches"
    waiting = f"{queues.evaluations_waiting} evaluations waiting, {queues.dead_letters} dead letters"
    return [
        ("run", status.run_id),
        ("policy version", f"{version}, after {status.step} steps"),
        ("state", f"{status.state}: {status.waiting_for}"),
        ("tasks", f"{status.tasks_active} active, {status.tasks_paused} paused"),
        ("speed", speed),
        ("staleness", f"{number(status.staleness.mean_versions, 2)} versions in the mean"),
        (
            "buffer",
            f"{status.buffer.trajectories} trajectories, {status.buffer.ready_prompts} prompts ready to be drawn",
        ),
        ("in flight", f"{in_flight}, {waiting}"),
        ("ledger", _ledger_line(status.ledger)),
    ]


def _ledger_line(ledger: Ledger) -> str:
    fates = f"{ledger.stored} stored + {ledger.duplicates} duplicates + {ledger.dead_lettered} dead-lettered"
    open_ones = f"{ledger.expired} expired + {ledger.in_flight} in flight"
    return f"{ledger.issued} issued = {fates} + {open_ones}: {'balanced' if ledger.balances else 'NOT BALANCED'}"
