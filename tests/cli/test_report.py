"""A report is complete for machines and safe to open for people."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tba_cli.report import Curves, Report, write_report

REPORT = Report(
    measure="Accuracy",
    measured_on="600 held-out problems",
    before=0.6,
    after=0.95,
    interval_before=(0.56, 0.638),
    interval_after=(0.93, 0.965),
    trials=600,
    beside={},
    accuracy_before=0.6,
    accuracy_after=0.95,
    held_out_problems=600,
    answers_per_problem=1,
    evaluation="greedy",
    steps=30,
    policy_versions=15,
    trajectories=4_000,
    duplicates=1_000,
    dead_letters=0,
    staleness={"1": 100, "10": 3, "2": 50},
    seconds=200.0,
    seconds_of_preparation=60.0,
    completions_per_second=80.0,
    ledger={"issued": 5_000, "stored": 4_000, "duplicates": 1_000},
    processes=[{"name": "tba-learner", "pid": 1}],
    restarts={},
    prompt_format="{a:02d}+{b:02d}=",
    run_id="demo",
    preset="addition",
    model="runs/demo/start",
)
CURVES = Curves(
    rewards=[0.5] * 30,
    losses=[1.0] * 30,
    step_ends_seconds=[float(i) for i in range(30)],
    trajectories_per_step=256,
    evaluations=[(0, 0.6), (10, 0.95)],
    beside={},
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report whose prompt format is hostile."""
    directory = tmp_path_factory.mktemp("report")
    write_report(directory, replace(REPORT, prompt_format="<img onerror=x>"), CURVES)
    return directory


def test_the_json_holds_every_figure(written: Path) -> None:
    figures = json.loads((written / "report.json").read_text())
    assert figures["accuracy_after"] == 0.95
    assert figures["interval_after"] == [0.93, 0.965]
    assert figures["curves"]["rewards"] == CURVES.rewards
    assert figures["curves"]["evaluations"] == [[0, 0.6], [10, 0.95]]
    assert figures["staleness"] == {"1": 100, "10": 3, "2": 50}
    assert figures["processes"] == [{"name": "tba-learner", "pid": 1}]


def test_the_page_shows_five_pictures_and_needs_no_network(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "600 held-out problems, greedy: 60.0% before, 95.0% after 30 steps" in page
    assert "n = 600 problems, each answered once): 56.0% to 63.8% before, 93.0% to 96.5% after" in page
    assert "<script" not in page
    assert "src=" not in page


def test_text_on_the_page_is_escaped(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert "<img" not in page
    assert "&lt;img onerror=x&gt;" in page


def test_a_run_too_short_for_a_curve_still_has_a_report(tmp_path: Path) -> None:
    write_report(tmp_path, REPORT, replace(CURVES, rewards=[0.5], losses=[1.0], step_ends_seconds=[0.0]))
    assert (tmp_path / "report.html").read_text().count("<svg") == 5


def test_figures_beside_the_measured_one_have_a_picture_and_a_row_each(tmp_path: Path) -> None:
    beside = {"diversity": (0.8, 0.7), "kl": (None, 5.5)}
    points = {"diversity": [(0, 0.8), (10, 0.7)], "kl": [(10, 5.5)]}
    write_report(tmp_path, replace(REPORT, beside=beside), replace(CURVES, beside=points))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 7
    assert "<tr><th>kl</th><td class=n>-</td><td class=n>5.500</td></tr>" in page
    assert json.loads((tmp_path / "report.json").read_text())["beside"]["diversity"] == [0.8, 0.7]


def test_where_each_answer_is_a_trial_the_page_says_so(tmp_path: Path) -> None:
    measured = replace(REPORT, measure="Mean toxicity", measured_on="256 fresh attacks", trials=256)
    write_report(tmp_path, replace(measured, held_out_problems=4, answers_per_problem=64), CURVES)
    page = (tmp_path / "report.html").read_text()
    assert "Mean toxicity on 256 fresh attacks, greedy: 60.0% before, 95.0% after 30 steps" in page
    assert "n = 256 answers)" in page
