"""The sampling law in SQL: an independent oracle of the index, and a way to draw where the index is not to be trusted.

It reads the tables only and writes nothing; what a batch moved is written with its record (batches.py). It costs more
with every stored row (docs/sampling.md). Randomness is a hash of the batch and the trajectory or the prompt, so that a
draw can be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, NamedTuple

import numpy as np
from sqlalchemy import Connection, Row, text

from services.buffer.index import ROW
from services.buffer.orders import load_tasks
from services.buffer.picking import Picks, with_replacement
from services.buffer.sampling import Batch, DeckName, DeckState, GroupDraw, Kind
from services.buffer.settings import BufferSettings

_STATE: Final = """
    SELECT policy_version, online_floor, offline_floor FROM runs JOIN sampler_state USING (run_id)
    WHERE run_id = :run_id
"""
# Every ready prompt in the order that each deck deals it, or by descending key where it is drawn by priority. The floor
# is where a prompt enters that was never dealt. Weights as in docs/sampling.md; without priority they are null.
_IN_ORDER: Final = """
    WITH kept AS (
        SELECT * FROM (
            SELECT prompt_id, task_id, policy_version, reward, row_number() OVER (
                PARTITION BY prompt_id ORDER BY policy_version DESC, trajectory_id DESC) AS age
            FROM trajectories WHERE run_id = :run_id AND task_id = ANY (CAST(:active AS bigint[]))
        ) AS stored WHERE age <= :capacity
    ),
    newest AS (SELECT max(policy_version) AS newest FROM kept WHERE policy_version >= :oldest),
    ready AS (
        SELECT deck, prompt_id, task_id, least, floor, newest - last AS behind, spread FROM newest, (
            SELECT prompt_id, task_id, (array_agg(policy_version ORDER BY age))[:fewest] AS kth,
                max(policy_version) AS last, stddev_pop(reward) AS spread
            FROM kept GROUP BY prompt_id, task_id
        ) AS prompts, LATERAL (
            VALUES ('offline', :oldest, :offline_floor),
                ('online', greatest(:oldest, newest - :recency + 1), :online_floor)
        ) AS cut (deck, least, floor)
        WHERE kth >= least
    ),
    weighted AS (
        SELECT ready.*, CASE WHEN deck = 'offline' THEN 0.1 + 0.9 * CASE CAST(:priority AS text)
            WHEN 'spread' THEN spread / greatest(max(spread) OVER (PARTITION BY deck), 1e-12)
            WHEN 'recency' THEN power(CAST(2 AS float8), -4.0 * greatest(behind, 0) / :max_staleness)
        END END AS weight
        FROM ready
    ),
    counted AS (
        SELECT weighted.*, greatest(coalesce(dealt, 0), floor) AS dealt,
            ln(weight) - ln(-ln((((hashint8extended(hashint8extended(prompt_id, :salt), :salt) >> 11)
                & 9007199254740991) + 0.5) / 9007199254740992)) AS key
        FROM weighted
        LEFT JOIN (SELECT deck, prompt_id, dealt FROM decks WHERE run_id = :run_id) AS own USING (deck, prompt_id)
    )
    SELECT deck, prompt_id, task_id, least, dealt, weight FROM counted
    ORDER BY deck, key DESC, dealt, hashtextextended(concat_ws('/', deck, dealt, prompt_id), :seed), prompt_id
"""
# The K+1 largest of log weight + Gumbel for each group; the sum runs from the smallest key up, so that it is what
# is left before each draw. A hash has 64 bits, of which 53 make a double in (0, 1); one pass of it leaves neighbouring
# ids so alike that their order is not uniform.
_PICKS: Final = """
    SELECT * FROM unnest(
        CAST(:groups AS int[]), CAST(:prompts AS bigint[]), CAST(:least AS int[]),
        CAST(:betas AS float8[]), CAST(:salts AS bigint[])
    ) AS dealt (group_index, prompt_id, least, beta, salt), LATERAL (
        SELECT trajectory_id, policy_version, reward, weight, key,
            row_number() OVER (ORDER BY key DESC, trajectory_id) AS place, count(*) OVER () AS available,
            top + ln(sum(exp(weight - top)) OVER (ORDER BY key, trajectory_id DESC)) AS remaining
        FROM (
            SELECT trajectory_id, policy_version, reward, beta * reward AS weight, max(beta * reward) OVER () AS top,
                beta * reward - ln(-ln((((hashint8extended(hashint8extended(trajectory_id, salt), salt) >> 11)
                    & 9007199254740991) + 0.5) / 9007199254740992)) AS key
            FROM (
                SELECT trajectory_id, policy_version, reward FROM trajectories
                WHERE run_id = :run_id AND trajectories.prompt_id = dealt.prompt_id
                ORDER BY policy_version DESC, trajectory_id DESC LIMIT :capacity
            ) AS newest
            WHERE policy_version >= least
        ) AS keyed
    ) AS drawn
    WHERE place <= :count + 1 ORDER BY group_index, place
"""


class _Dealt(NamedTuple):
    """A prompt of the batch."""

    row: Row[Any]
    kind: Kind
    prompt_logprob: float | None


@dataclass(slots=True)
class _Deck:
    """One deck as the query ordered it; `dealt` counts what this batch takes from it."""

    floor: int
    seed: int
    order: list[Row[Any]] = field(default_factory=list)
    dealt: dict[int, int] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)  # of every prompt, where they are drawn by priority

    def deal(self, kind: Kind, taken: Collection[int]) -> _Dealt | None:
        """Take the next prompt that is not taken."""
        row = next((row for row in self.order if row.prompt_id not in taken), None)
        if row is None:
            return None
        if row.weight is None:
            self.dealt[row.prompt_id] = self._count(row) + 1
            return _Dealt(row, kind, None)
        left = sum(self.weights.values()) - sum(self.weights.get(x, 0.0) for x in taken)
        return _Dealt(row, kind, math.log(row.weight / max(left, row.weight)))

    def reorder(self) -> None:
        """Bring the order up to the counts, when all are in the batch and come again."""
        if not self.weights:
            self.order.sort(key=lambda row: (self._count(row), _salt(self.seed, self._count(row), row.prompt_id)))

    def state(self) -> DeckState:
        """Return what the tables must remember."""
        return DeckState(min(map(self._count, self.order), default=self.floor), self.dealt)

    def _count(self, row: Row[Any]) -> int:
        count: int = self.dealt.get(row.prompt_id, row.dealt)
        return count


@dataclass(frozen=True, slots=True)
class SqlSampler:
    """Draws by the law from the tables of a run.

    Args:
        transaction: opens one; the buffer's own, under its lease, so that nothing changes until the batch is recorded.
    """

    transaction: Callable[[], AbstractContextManager[Connection]]
    settings: BufferSettings
    seed: int

    def batch(self, batch_id: int) -> Batch | None:
        """Draw a batch; None when the tables hold no prompt that is ready."""
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, batch_id], dtype=np.uint64)))
        with self.transaction() as connection:
            state = connection.execute(text(_STATE), {"run_id": self.settings.run_id}).one()
            decks = self._decks(connection, batch_id, state)
            if not decks["offline"].order:  # the online deck is a part of it
                return None
            dealt = self._deal(rng, decks)
            rows = self._pick(connection, batch_id, dealt)
        groups = tuple(
            self._group(rng, prompt, list(drawn))
            for prompt, (_, drawn) in zip(dealt, groupby(rows, key=attrgetter("group_index")), strict=True)
        )
        return Batch(state.policy_version, groups, {name: deck.state() for name, deck in decks.items()})

    def _decks(self, connection: Connection, batch_id: int, state: Row[Any]) -> dict[DeckName, _Deck]:
        s = self.settings
        numbers = {
            "run_id": s.run_id,
            "active": [x for x, task in load_tasks(connection, s.run_id).items() if task.state == "active"],
            "oldest": state.policy_version - s.max_staleness_versions,
            "max_staleness": s.max_staleness_versions,
            "capacity": s.capacity_per_prompt,
            "recency": s.recency_versions,
            "fewest": s.min_trajectories_per_group,
            "online_floor": state.online_floor,
            "offline_floor": state.offline_floor,
            "priority": s.prompt_priority,
            "seed": _signed(self.seed),
            "salt": _salt(self.seed, batch_id, "prompts"),
        }
        decks: dict[DeckName, _Deck] = {
            "online": _Deck(state.online_floor, self.seed),
            "offline": _Deck(state.offline_floor, self.seed),
        }
        for row in connection.execute(text(_IN_ORDER), numbers):
            deck = decks[row.deck]
            deck.order.append(row)
            if row.weight is not None:
                deck.weights[row.prompt_id] = row.weight
        return decks

    def _deal(self, rng: np.random.Generator, decks: dict[DeckName, _Deck]) -> list[_Dealt]:
        """Choose the prompts; one comes twice only when every ready prompt is in the batch."""
        online, offline = decks["online"], decks["offline"]
        chosen: list[_Dealt] = []
        taken: set[int] = set()
        for wants_online in rng.random(self.settings.groups_per_batch) < self.settings.most_on_policy_probability:
            kind: Kind = "fallback" if wants_online else "offline"
            dealt = (online.deal("online", taken) if wants_online else None) or offline.deal(kind, taken)
            if dealt is None:
                taken.clear()
                online.reorder()
                offline.reorder()
                dealt = offline.deal(kind, taken)
            assert dealt is not None  # some prompt is ready
            taken.add(dealt.row.prompt_id)
            chosen.append(dealt)
        return chosen

    def _pick(self, connection: Connection, batch_id: int, dealt: Sequence[_Dealt]) -> Sequence[Row[Any]]:
        beta = self.settings.inverse_temperature
        arrays = {
            "groups": list(range(len(dealt))),
            "prompts": [prompt.row.prompt_id for prompt in dealt],
            "least": [prompt.row.least for prompt in dealt],
            "betas": [0.0 if prompt.kind == "online" else beta for prompt in dealt],
            "salts": [_salt(self.seed, batch_id, index) for index in range(len(dealt))],
        }
        scalars = {
            "run_id": self.settings.run_id,
            "capacity": self.settings.capacity_per_prompt,
            "count": self.settings.trajectories_per_group,
        }
        return connection.execute(text(_PICKS), arrays | scalars).all()

    def _group(self, rng: np.random.Generator, prompt: _Dealt, drawn: list[Row[Any]]) -> GroupDraw:
        count, available = self.settings.trajectories_per_group, int(drawn[0].available)
        log_normalizer = float(drawn[0].remaining)
        kappa = float(drawn[count].key) if available > count else -np.inf
        rows = np.array([(row.policy_version, row.trajectory_id, row.reward) for row in drawn[:count]], dtype=ROW)
        logprobs = np.array([row.weight - row.remaining for row in drawn[:count]])
        marginals = np.array([row.weight - log_normalizer for row in drawn[:count]])
        once = np.arange(len(rows))
        if available < count and self.settings.sampling_law == "tba":
            once = once[:0]
        again = with_replacement(rng, marginals, count - len(once))
        positions = np.concatenate([once, again])
        picks = Picks(
            positions,
            np.concatenate([logprobs[: len(once)], marginals[again]]),
            marginals[positions],
            kappa,
            log_normalizer,
        )
        row, kind, prompt_logprob = prompt
        return GroupDraw(row.prompt_id, row.task_id, kind, rows[positions], picks, available, prompt_logprob)


def _salt(*parts: object) -> int:
    return _signed(int.from_bytes(blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()))


def _signed(unsigned: int) -> int:
    return unsigned - (1 << 64) if unsigned >= 1 << 63 else unsigned
