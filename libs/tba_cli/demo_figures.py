"""From what the API tells of a finished demo to its report: the measured figure, those beside it, and the curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tba_cli.answers import Evaluation, StepAnswer
from tba_cli.client import Client
from tba_cli.intervals import wilson
from tba_cli.presets.preset import DemoError, Measure, Preset
from tba_cli.report import Curves, Points, Report
from tba_common.tasks import PromptSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A demo about to start: its preset, with every choice made."""

    preset: Preset
    directory: Path
    steps: int
    prompts: Sequence[PromptSpec]
    model: str
    environment: Mapping[str, Mapping[str, str]]
    preparation_seconds: float

    @property
    def held_out(self) -> int:
        return sum(prompt.split == "eval" for prompt in self.prompts)

    @property
    def answers(self) -> int:
        """How many answers an evaluation has."""
        return self.held_out * self.preset.task.evaluation.completions

    @property
    def trials(self) -> int:
        """How many of them are independent of one another."""
        return self.answers if self.preset.measure.each_answer else self.held_out

    @property
    def task(self) -> str:
        return self.preset.task.name

    def is_complete(self, evaluation: Evaluation) -> bool:
        """Whether every held-out problem has been answered as often as it should."""
        return evaluation.n == evaluation.n_expected == self.answers


def collect(
    client: Client,
    plan: Plan,
    processes: Sequence[dict[str, object]],
    restarts: dict[str, int],
    *,
    newest: int,
    seconds: float,
) -> tuple[Report, Curves]:
    """Ask for everything that a run leaves behind, `seconds` after its beginning.

    Raises:
        DemoError: an evaluation does not have what the preset measures.
    """
    steps = client.steps()
    status = client.status()
    evaluations = {e.policy_version: e for e in client.evaluations(plan.task) if plan.is_complete(e)}
    first, last = evaluations[0], evaluations[newest]
    measure = plan.preset.measure
    before, after = measured(first, measure), measured(last, measure)
    sampling = plan.preset.task.evaluation
    report = Report(
        measure=measure.name,
        measured_on=f"{plan.answers if measure.each_answer else plan.held_out} {measure.of}",
        before=before,
        after=after,
        interval_before=wilson(before, plan.trials),
        interval_after=wilson(after, plan.trials),
        trials=plan.trials,
        beside={name: (_figure(first, name), _figure(last, name)) for name in measure.beside},
        accuracy_before=first.accuracy or 0.0,
        accuracy_after=last.accuracy or 0.0,
        held_out_problems=plan.held_out,
        answers_per_problem=sampling.completions,
        evaluation="greedy" if sampling.temperature == 0 else f"sampled at temperature {sampling.temperature:g}",
        steps=len(steps),
        policy_versions=client.generator_versions(plan.task),
        trajectories=status.ledger.stored,
        duplicates=status.ledger.duplicates,
        dead_letters=status.queues.dead_letters,
        staleness=_staleness(steps),
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
    return report, _curves(steps, [evaluations[version] for version in sorted(evaluations)], measure)


def _curves(steps: Sequence[StepAnswer], evaluations: Sequence[Evaluation], measure: Measure) -> Curves:
    def points(name: str) -> Points:
        found = [(evaluation.policy_version, _figure(evaluation, name)) for evaluation in evaluations]
        return [(version, figure) for version, figure in found if figure is not None]

    began = steps[0].created_at
    return Curves(
        rewards=[step.reward for step in steps],
        losses=[step.loss for step in steps],
        step_ends_seconds=[(step.created_at - began).total_seconds() for step in steps],
        trajectories_per_step=steps[0].trajectories,
        evaluations=[(evaluation.policy_version, measured(evaluation, measure)) for evaluation in evaluations],
        beside={name: points(name) for name in measure.beside},
    )


def measured(evaluation: Evaluation, measure: Measure) -> float:
    """The figure that should rise.

    Raises:
        DemoError: the evaluation does not have it.
    """
    figure = evaluation.accuracy if measure.score is None else evaluation.scores.get(measure.score)
    if figure is None:
        raise DemoError(f"the evaluation of version {evaluation.policy_version} has no {measure.score or 'accuracy'}")
    return figure


def _figure(evaluation: Evaluation, name: str) -> float | None:
    """A figure by its name: `kl`, `pass@4`, or that of a score."""
    if name == "kl":
        return evaluation.kl
    if name.startswith("pass@"):
        return evaluation.pass_at.get(int(name.removeprefix("pass@")))
    return evaluation.scores.get(name)


def _staleness(steps: Sequence[StepAnswer]) -> dict[str, int]:
    counts: Counter[int] = Counter()
    for step in steps:
        counts.update({int(age): count for age, count in step.staleness_versions.items()})
    return {str(age): counts[age] for age in sorted(counts)}
