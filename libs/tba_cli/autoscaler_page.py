"""The autoscaler on a terminal: its signals, and its decisions with their reasons."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tba_cli.answers import Autoscaler, ScaleSignals
from tba_cli.escapes import visible
from tba_cli.show import number


def autoscaler_page(found: Autoscaler) -> RenderableType:
    """Signals, override, and the latest decisions, newest first."""
    grid = Table.grid(padding=(0, 2))
    for name, value in [*_signals(found.signals), ("override", _override(found))]:
        grid.add_row(Text(name, style="bold"), Text(visible(value)))
    table = Table("since", "until", "generators", "ready", "desired", "reason", "", box=None, header_style="bold")
    for decision in found.decisions:
        times = (f"{decision.created_at:%H:%M:%S}", f"{decision.decided_at:%H:%M:%S}")
        figures = (str(decision.replicas), str(decision.ready), str(decision.desired))
        reason = decision.reason if decision.applied else f"{decision.reason} (not applied)"
        table.add_row(*times, *figures, Text(visible(reason)), Text(visible(decision.sentence)))
    return Group(grid, Text(), table)


def _signals(signals: ScaleSignals | None) -> list[tuple[str, str]]:
    if signals is None:
        return [("signals", "none: the buffer has not said anything yet")]
    waits = "unknown" if signals.wait_ratio is None else f"{signals.wait_ratio:.0%} of the time"
    return [
        ("signals", f"{signals.age_seconds:.0f} s old"),
        ("learner waits", f"{waits}; a step takes {number(signals.step_seconds, 2)} s"),
        ("arriving", f"{signals.trajectories_per_second:.2f} trajectories/s"),
        ("ahead", f"{signals.stock_steps:.1f} steps in stock, {signals.fresh_steps:.1f} of them not drawn yet"),
        ("in flight", f"{signals.in_flight_prompts} prompts of at most {signals.admission_capacity}"),
        ("staleness", f"{number(signals.staleness_versions, 2)} versions in the mean"),
    ]


def _override(found: Autoscaler) -> str:
    return (
        "none" if found.override is None else f"{found.override.replicas} until {found.override.until:%Y-%m-%d %H:%M}"
    )
