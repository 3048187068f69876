"""log pi_ref of drawn trajectories, where the reward of their task names a scorer that computes it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import Connection, select

from services.buffer.arrays import any_of
from services.buffer.tables import trajectories
from tba_common.tasks import Task, kind_of

_KIND = "reference"


def has_reference(task: Task) -> bool:
    """Say whether trajectories of this task come with their log-probability under the reference."""
    return any(kind_of(term.scorer) == _KIND for term in task.reward)


def load_ref_logprobs(
    connection: Connection, run_id: str, trajectory_ids: Collection[int], specs: Mapping[int, Task]
) -> dict[int, float]:
    """Return the sum of log pi_ref over the tokens of each of these trajectories that has one, by its id."""
    of_tasks = [task_id for task_id, task in specs.items() if has_reference(task)]
    if not of_tasks:
        return {}
    row = trajectories.c
    mine = row.run_id == run_id, row.trajectory_id == any_of(trajectory_ids), row.task_id == any_of(of_tasks)
    found = connection.execute(select(row.trajectory_id, row.scores).where(*mine))
    return {
        trajectory_id: score["value"]
        for trajectory_id, scores in found
        for score in scores
        if kind_of(score["scorer"]) == _KIND
    }
