"""What people see: every figure is there, and hostile text is only text."""

from __future__ import annotations

from rich.console import Console, RenderableType

from tba_cli import show
from tba_cli.answers import Evaluation, Status, StepAnswer, TaskAnswer, Trajectory
from tests.cli.fake_api import STATUS, TASK, step


def rendered(page: RenderableType) -> str:
    console = Console(width=200, record=True, force_terminal=True, highlight=False)
    with console.capture() as capture:
        console.print(page)
    return capture.get()


def trajectory(text: str) -> Trajectory:
    return Trajectory.model_validate(
        {
            "trajectory_id": 1,
            "task": "addition",
            "prompt_id": 1,
            "policy_version": 2,
            "reward": 1.0,
            "prompt": "12+07=",
            "text": text,
            "tokens": 2,
            "finish_reason": "eos",
            "temperature": 1.0,
            "top_p": 1.0,
            "created_at": "2026-01-02T03:04:05Z",
        }
    )


def test_the_status_tells_the_ledger_as_an_equation() -> None:
    page = rendered(show.status_grid(Status.model_validate(STATUS)))
    assert "704 issued = 600 stored + 40 duplicates + 0 dead-lettered + 0 expired + 64 in flight: balanced" in page
    assert "3, after 7 steps" in page


def test_a_ledger_that_does_not_balance_cannot_be_overlooked() -> None:
    status = Status.model_validate(STATUS)
    ledger = status.ledger.model_copy(update={"stored": 1, "balances": False})
    assert "NOT BALANCED" in rendered(show.status_grid(status.model_copy(update={"ledger": ledger})))


def test_a_task_shows_its_progress() -> None:
    page = rendered(show.tasks_table([TaskAnswer.model_validate(TASK)]))
    assert all(figure in page for figure in ("addition", "math", "active", "10", "40", "600", "0.625"))


def test_what_a_model_wrote_is_neither_obeyed_nor_read_as_markup() -> None:
    page = rendered(show.trajectories_table([trajectory("[bold]\x1b]0;title\x07[/bold]")]))
    assert r"[bold]\x1b]0;title\x07[/bold]" in page


def test_a_step_is_one_line_with_its_staleness() -> None:
    line = show.step_line(StepAnswer.model_validate(step(7)))
    assert line.startswith("step 7  version 3  reward 0.500")
    assert "staleness 0.50" in line


def test_an_evaluation_without_answers_has_dashes() -> None:
    waiting = Evaluation(
        task="addition", policy_version=0, n=0, n_lost=1, n_expected=600, mean_reward=None, accuracy=None
    )
    assert "0/600 (1 lost)" in rendered(show.evaluations_table([waiting]))
    assert show.number(None, 3) == "-"


def test_a_task_s_name_is_whole_on_a_narrow_terminal() -> None:
    task = TaskAnswer.model_validate(TASK | {"name": "a-task-of-twenty-five-abc"})
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        console.print(show.tasks_table([task]))
    rows = capture.get().splitlines()[1:]
    assert "".join(row.split()[0] for row in rows) == task.name
