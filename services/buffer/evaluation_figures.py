"""What an evaluation says beyond its mean reward: each scorer's mean, pass@k, and the distance to the reference.

Nothing here knows a task family: a win rate, an attack success rate or a diversity is the mean of a scorer's value or
of one of its details.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Final

from sqlalchemy import Connection, text

Key = tuple[int, int]  # task id, policy version

_QUERY: Final = text("""
WITH answers AS (
    SELECT e.* FROM evaluations e
    JOIN unnest(CAST(:task_ids AS bigint[]), CAST(:versions AS integer[])) AS asked (task_id, policy_version)
    USING (task_id, policy_version) WHERE e.run_id = :run_id
), judged AS (
    SELECT task_id, policy_version, policy_logprob, s ->> 'scorer' AS scorer, (s ->> 'value')::float8 AS value,
        coalesce(s -> 'details', '{}') AS details
    FROM answers, jsonb_array_elements(scores) AS s
), prompts AS (
    SELECT task_id, policy_version, count(*) AS n, count(*) FILTER (WHERE reward >= 1) AS c
    FROM answers GROUP BY task_id, policy_version, prompt_id
)
SELECT task_id, policy_version, 'score' AS kind, scorer AS name, avg(value) AS mean, 0 AS n, 0 AS c, 0 AS prompts
FROM judged GROUP BY 1, 2, 4
UNION ALL
SELECT task_id, policy_version, 'score', scorer || '.' || detail.key, avg(detail.value::float8), 0, 0, 0
FROM judged, jsonb_each_text(details) AS detail GROUP BY 1, 2, 4
UNION ALL
SELECT task_id, policy_version, 'kl', NULL, avg(policy_logprob - value), 0, 0, 0 FROM judged
WHERE split_part(scorer, '.', 1) = 'reference' AND policy_logprob IS NOT NULL GROUP BY 1, 2
UNION ALL
SELECT task_id, policy_version, 'right', NULL, 0, n, c, count(*) FROM prompts GROUP BY 1, 2, n, c
ORDER BY kind, name
""")


@dataclass(slots=True)
class Figures:
    """Of one task under one policy version."""

    scores: dict[str, float] = field(default_factory=dict)
    pass_at: dict[int, float] = field(default_factory=dict)
    kl: float | None = None


def figures(connection: Connection, run_id: str, keys: Sequence[Key]) -> dict[Key, Figures]:
    """Return the figures of evaluations; one without an answer has none."""
    found: dict[Key, Figures] = defaultdict(Figures)
    if not keys:
        return found

    asked = {"task_ids": [key[0] for key in keys], "versions": [key[1] for key in keys], "run_id": run_id}
    right: dict[Key, list[tuple[int, int, int]]] = defaultdict(list)
    for row in connection.execute(_QUERY, asked):
        key = (row.task_id, row.policy_version)
        if row.kind == "score":
            found[key].scores[row.name] = row.mean
        elif row.kind == "kl":
            found[key].kl = row.mean
        else:
            right[key].append((row.n, row.c, row.prompts))
    for key, counts in right.items():
        found[key].pass_at = pass_at(counts)
    return found


def pass_at(counts: Iterable[tuple[int, int, int]]) -> dict[int, float]:
    """Return pass@k at k = 1, 2, 4, ... up to the most answers a prompt has.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv:2107.03374, equation 1), a mean over the
    prompts that have k answers. `counts`: (answers n, right ones c, prompts with these counts).
    """
    listed = list(counts)
    estimates = {}
    k = 1
    while k <= max((n for n, _, _ in listed), default=0):
        enough = [(n, c, prompts) for n, c, prompts in listed if n >= k]
        passed = sum(prompts * (1 - comb(n - c, k) / comb(n, k)) for n, c, prompts in enough)
        estimates[k] = passed / sum(prompts for _, _, prompts in enough)
        k *= 2
    return estimates
