"""What a demo leaves behind: `report.json` for machines, `report.html` with its curves as pictures for people."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

_CSS: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733 }
h1 { font-size: 1.6rem } figure { margin: 1.5rem 0 } figcaption { color: #5a6b7b }
table { border-collapse: collapse } td, th { text-align: left; padding: .25rem 1.5rem .25rem 0; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums } svg { max-width: 100%; height: auto }
"""


@dataclass(frozen=True)
class Report:
    """The figures of a run; the fields of `report.json`.

    `before` and `after` are of the figure that `measure` names, on `held_out_problems`, answered as `evaluation` says;
    their intervals are of 95%, with `trials` trials. `beside` has further figures, each before and after. Accuracies
    are shares of answers with the whole reward. `staleness` counts trained trajectories by policy versions of age;
    `ledger` counts training completions.
    """

    measure: str
    measured_on: str
    before: float
    after: float
    interval_before: tuple[float, float]
    interval_after: tuple[float, float]
    trials: int
    beside: Mapping[str, tuple[float | None, float | None]]
    accuracy_before: float
    accuracy_after: float
    held_out_problems: int
    answers_per_problem: int
    evaluation: str  # greedy, or sampled at which temperature
    steps: int
    policy_versions: int
    trajectories: int
    duplicates: int
    dead_letters: int
    staleness: Mapping[str, int]
    seconds: float
    seconds_of_preparation: float  # of the models that it starts from
    completions_per_second: float
    ledger: Mapping[str, int]
    processes: Sequence[Mapping[str, Any]]
    restarts: Mapping[str, int]
    prompt_format: str
    run_id: str
    preset: str
    model: str


Points = Sequence[tuple[int, float]]  # (policy version, figure)


@dataclass(frozen=True)
class Curves:
    """What the pictures show."""

    rewards: Sequence[float]  # one per step
    losses: Sequence[float]  # one per step
    step_ends_seconds: Sequence[float]  # since the first step
    trajectories_per_step: int
    evaluations: Points  # of the measured figure
    beside: Mapping[str, Points]


def write_report(directory: Path, report: Report, curves: Curves) -> None:
    """Write both files into `directory`."""
    (directory / "report.json").write_text(json.dumps({**asdict(report), "curves": asdict(curves)}, indent=2) + "\n")
    (directory / "report.html").write_text(_page(report, curves))


def _page(report: Report, curves: Curves) -> str:
    figures = "".join(
        f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for svg, caption in _figures(report, curves)
    )
    rows = "".join(
        f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td class=n>{html.escape(_number(value))}</td></tr>"
        for name, value in asdict(report).items()
        if isinstance(value, int | float | str)
    )
    ledger = "".join(
        f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td class=n>{value:,}</td></tr>"
        for name, value in report.ledger.items()
    )
    beside = "".join(
        f"<tr><th>{html.escape(name)}</th><td class=n>{_figure(before)}</td><td class=n>{_figure(after)}</td></tr>"
        for name, (before, after) in report.beside.items()
    )
    beside = beside and f"<h2>Beside it, before and after</h2><table>{beside}</table>"
    headline = (
        f"{report.measure} on {report.measured_on}, {report.evaluation}: "
        f"{report.before:.1%} before, {report.after:.1%} after {report.steps} steps"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>TBA run {html.escape(report.run_id)}</title>'
        f"<style>{_CSS}</style><h1>{html.escape(headline)}</h1><p>{html.escape(_trust(report))}</p>{figures}"
        f"{beside}<h2>Figures</h2><table>{rows}</table><h2>Ledger, in completions</h2><table>{ledger}</table></html>\n"
    )


def _trust(report: Report) -> str:
    before, after = (f"{low:.1%} to {high:.1%}" for low, high in (report.interval_before, report.interval_after))
    trials = f"{report.trials} problems, each answered " + (
        "once" if report.answers_per_problem == 1 else f"{report.answers_per_problem} times"
    )
    if report.trials != report.held_out_problems:
        trials = f"{report.trials} answers"
    return f"95% intervals (Wilson, n = {trials}): {before} before, {after} after"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _number(value: float | str) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if value < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else value


def _figures(report: Report, curves: Curves) -> list[tuple[str, str]]:
    ages = sorted(report.staleness, key=int)
    counts = [report.staleness[age] for age in ages]
    steps = list(range(1, len(curves.rewards) + 1))
    return [
        (
            _points(curves.evaluations, report.measure),
            f"{report.measure} on {report.measured_on}, {report.evaluation}",
        ),
        *((_points(points, name), f"Beside it: {name}") for name, points in curves.beside.items()),
        (_line(steps, curves.rewards, "optimiser step", "mean reward"), "Reward of the trajectories in each batch"),
        (_line(steps, curves.losses, "optimiser step", "loss"), "Trajectory-balance loss"),
        (_bars(ages, counts), "Staleness: how many versions old a trajectory was when it was trained on"),
        (_line(*_throughput(curves), "seconds", "trajectories / s"), "Throughput of the learner"),
    ]


def _throughput(curves: Curves, window: int = 10) -> tuple[list[float], list[float]]:
    ends = curves.step_ends_seconds
    points = [
        (ends[i], window * curves.trajectories_per_step / (ends[i] - ends[i - window]))
        for i in range(window, len(ends))
        if ends[i] > ends[i - window]
    ]
    return [x for x, _ in points], [y for _, y in points]


def _points(points: Points, label: str) -> str:
    return _line([version for version, _ in points], [figure for _, figure in points], "policy version", label, "o")


def _line(x: Sequence[float], y: Sequence[float], x_label: str, y_label: str, marker: str = "") -> str:
    figure, axes = _canvas(x_label, y_label)
    axes.plot(x, y, color="#2563a8", linewidth=1.6, marker=marker, markersize=4)
    return _svg(figure)


def _bars(labels: Sequence[str], counts: Sequence[int]) -> str:
    figure, axes = _canvas("versions", "trajectories")
    axes.bar(labels, counts, color="#2563a8")
    return _svg(figure)


def _canvas(x_label: str, y_label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]
