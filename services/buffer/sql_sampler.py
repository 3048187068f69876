"""The sampling law in SQL: an independent oracle of the index, and a way to draw where no index is.

It reads the tables only, so any process can draw, without a lease and without a rebuild; it costs more with every
stored row (docs/sampling.md). Randomness is a hash of the batch and the trajectory, so that a draw can be repeated.
Of the switches it leaves out `prompt_priority`: prompts come from the decks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, Row, text

from services.buffer.index import ROW
from services.buffer.picking import Picks, with_replacement
from services.buffer.sampling import GroupDraw, Kind
from services.buffer.settings import BufferSettings

# Every ready prompt in the order of each deck. `floor` is where a prompt enters that was never dealt.
_IN_ORDER: Final = """
    WITH learner AS (SELECT policy_version - :max_staleness AS oldest FROM runs WHERE run_id = :run_id),
    stored AS (
        SELECT prompt_id, task_id, policy_version, row_number() OVER (
            PARTITION BY prompt_id ORDER BY policy_version DESC, trajectory_id DESC) AS age
        FROM trajectories JOIN tasks USING (task_id)
        WHERE trajectories.run_id = :run_id AND tasks.state = 'active'
    ),
    eligible AS (SELECT stored.* FROM stored, learner WHERE age <= :capacity AND policy_version >= oldest),
    newest AS (SELECT max(policy_version) - :recency + 1 AS oldest_online FROM eligible),
    ready AS (
        SELECT deck, prompt_id, task_id, least FROM learner, newest, (
            SELECT prompt_id, task_id, count(*) AS offline, (array_agg(policy_version ORDER BY age))[:fewest] AS kth
            FROM eligible GROUP BY prompt_id, task_id
        ) AS prompts, LATERAL (
            VALUES ('offline', oldest), ('online', greatest(oldest, oldest_online))
        ) AS cut (deck, least)
        WHERE kth >= least
    ),
    counted AS (
        SELECT ready.*, greatest(coalesce(dealt, 0), CASE deck WHEN 'online' THEN online_floor ELSE offline_floor END)
            AS dealt
        FROM ready JOIN sampler_state ON sampler_state.run_id = :run_id
        LEFT JOIN (SELECT deck, prompt_id, dealt FROM decks WHERE run_id = :run_id) AS own USING (deck, prompt_id)
    )
    SELECT * FROM counted
    ORDER BY deck, dealt, hashtextextended(concat_ws('/', deck, dealt, prompt_id), :seed), prompt_id
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
_DEALT: Final = """
    INSERT INTO decks (run_id, deck, prompt_id, dealt) VALUES (:run_id, :deck, :prompt_id, :dealt)
    ON CONFLICT (run_id, deck, prompt_id) DO UPDATE SET dealt = excluded.dealt
"""
_FLOORS: Final = "UPDATE sampler_state SET online_floor = :online, offline_floor = :offline WHERE run_id = :run_id"


@dataclass(slots=True)
class _Deck:
    """One deck as the query ordered it; `dealt` counts what this batch takes from it."""

    order: list[Row[Any]]
    dealt: dict[int, int] = field(default_factory=dict)

    def deal(self, taken: set[int]) -> Row[Any] | None:
        for row in self.order:
            if row.prompt_id not in taken:
                self.dealt[row.prompt_id] = self.dealt.get(row.prompt_id, row.dealt) + 1
                return row
        return None

    def floor(self) -> int:
        return min((self.dealt.get(row.prompt_id, row.dealt) for row in self.order), default=0)


@dataclass(frozen=True, slots=True)
class SqlSampler:
    """Draws by the law from the tables of a run.

    Args:
        transaction: opens one; the buffer's own, under its lease, when the decks are to move.
        advance: whether the decks move; without, the same batch number draws the same batch again.
    """

    transaction: Callable[[], AbstractContextManager[Connection]]
    settings: BufferSettings
    seed: int
    advance: bool = True

    def draw(self, batch_id: int) -> list[GroupDraw]:
        """Draw the G groups of a batch.

        Raises:
            ValueError: no prompt is ready.
        """
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, batch_id], dtype=np.uint64)))
        with self.transaction() as connection:
            decks = self._decks(connection)
            dealt = list(self._deal(rng, decks))
            if self.advance:
                self._save(connection, decks)
            rows = self._pick(connection, batch_id, dealt)
        return [
            self._group(rng, prompt, kind, list(drawn))
            for (prompt, kind), (_, drawn) in zip(dealt, groupby(rows, key=attrgetter("group_index")), strict=True)
        ]

    def _decks(self, connection: Connection) -> dict[str, _Deck]:
        s = self.settings
        numbers = {
            "run_id": s.run_id,
            "max_staleness": s.max_staleness_versions,
            "capacity": s.capacity_per_prompt,
            "recency": s.recency_versions,
            "fewest": s.min_trajectories_per_group,
            "seed": _signed(self.seed),
        }
        decks = {"online": _Deck([]), "offline": _Deck([])}
        for row in connection.execute(text(_IN_ORDER), numbers):
            decks[row.deck].order.append(row)
        return decks

    def _deal(self, rng: np.random.Generator, decks: dict[str, _Deck]) -> Iterator[tuple[Row[Any], Kind]]:
        taken: set[int] = set()
        for wants_online in rng.random(self.settings.groups_per_batch) < self.settings.most_on_policy_probability:
            kind: Kind = "online" if wants_online else "offline"
            row = decks[kind].deal(taken)
            if row is None and wants_online:
                kind, row = "fallback", decks["offline"].deal(taken)
            if row is None:
                taken.clear()
                row = decks["offline"].deal(taken)
            if row is None:
                raise ValueError("a batch was drawn although no prompt is ready")
            taken.add(row.prompt_id)
            yield row, kind

    def _save(self, connection: Connection, decks: dict[str, _Deck]) -> None:
        run_id = self.settings.run_id
        counts = [
            {"run_id": run_id, "deck": name, "prompt_id": prompt_id, "dealt": count}
            for name, deck in decks.items()
            for prompt_id, count in deck.dealt.items()
        ]
        connection.execute(text(_DEALT), counts)
        connection.execute(text(_FLOORS), {"run_id": run_id, **{name: deck.floor() for name, deck in decks.items()}})

    def _pick(
        self, connection: Connection, batch_id: int, dealt: Sequence[tuple[Row[Any], Kind]]
    ) -> Sequence[Row[Any]]:
        beta = self.settings.inverse_temperature
        arrays = {
            "groups": list(range(len(dealt))),
            "prompts": [row.prompt_id for row, _ in dealt],
            "least": [row.least for row, _ in dealt],
            "betas": [0.0 if kind == "online" else beta for _, kind in dealt],
            "salts": [_salt(self.seed, batch_id, index) for index in range(len(dealt))],
        }
        scalars = {
            "run_id": self.settings.run_id,
            "capacity": self.settings.capacity_per_prompt,
            "count": self.settings.trajectories_per_group,
        }
        return connection.execute(text(_PICKS), arrays | scalars).all()

    def _group(self, rng: np.random.Generator, prompt: Row[Any], kind: Kind, drawn: list[Row[Any]]) -> GroupDraw:
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
        return GroupDraw(prompt.prompt_id, prompt.task_id, kind, rows[positions], picks, available)


def _salt(seed: int, batch_id: int, index: int) -> int:
    return _signed(int.from_bytes(blake2b(f"{seed}/{batch_id}/{index}".encode(), digest_size=8).digest()))


def _signed(unsigned: int) -> int:
    return unsigned - (1 << 64) if unsigned >= 1 << 63 else unsigned
