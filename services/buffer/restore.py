"""What the buffer must know before its first turn, read back from Postgres: the only memory that survives."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert

from services.buffer.deck import Deck
from services.buffer.index import Index
from services.buffer.pacing import Backlog
from services.buffer.rebuild import rebuild
from services.buffer.sampling import Decks, Law, Sampler
from services.buffer.settings import BufferSettings
from services.buffer.state_tables import decks, input_offsets, sampler_state
from services.buffer.tables import runs, versions


@dataclass(frozen=True, slots=True)
class State:
    """The small part of a run's state."""

    version: int  # of the learner (V); -1: none announced yet
    steps_per_version: int
    inserts: int
    samples: int
    offsets: dict[tuple[str, int], int]  # (topic, partition): the next to read


@dataclass(frozen=True, slots=True)
class Restored:
    """A run as it was left."""

    state: State
    sampler: Sampler
    backlog: Backlog
    evicted: list[int]  # stored trajectories that do not fit into the index: the reaper's work


def restore(connection: Connection, settings: BufferSettings) -> Restored:
    """Read a run back."""
    run_id = settings.run_id
    state = load_state(connection, run_id)
    index = Index(
        capacity=settings.capacity_per_prompt,
        fewest=settings.min_trajectories_per_group,
        max_staleness=settings.max_staleness_versions,
        recency=settings.recency_versions,
    )
    law = Law(
        seed=seed_of(run_id),
        groups=settings.groups_per_batch,
        trajectories=settings.trajectories_per_group,
        most_on_policy_probability=settings.most_on_policy_probability,
        inverse_temperature=settings.inverse_temperature,
        all_independent=settings.sampling_law == "tba",
        prompt_priority=settings.prompt_priority,
    )
    index.advance(state.version)
    evicted, backlog = rebuild(connection, run_id, index)
    sampler = Sampler(index, load_decks(connection, run_id), law)
    return Restored(state, sampler, backlog, evicted)


def seed_of(run_id: str) -> int:
    """Return the 64-bit seed of a run: its name, hashed, so that a draw can be repeated without a stored number."""
    return int.from_bytes(blake2b(run_id.encode(), digest_size=8).digest())


def ensure_run(connection: Connection, run_id: str) -> None:
    """Make the run's rows, if this is its first process."""
    connection.execute(insert(runs).values(run_id=run_id).on_conflict_do_nothing())
    connection.execute(insert(sampler_state).values(run_id=run_id).on_conflict_do_nothing())


def load_state(connection: Connection, run_id: str) -> State:
    """Return where the run stands."""
    version = connection.execute(select(runs.c.policy_version).where(runs.c.run_id == run_id)).scalar_one()
    newest = select(versions.c.steps_per_version).where(versions.c.run_id == run_id)
    steps = connection.execute(newest.order_by(versions.c.version.desc()).limit(1)).scalar_one_or_none()
    counts = connection.execute(select(sampler_state).where(sampler_state.c.run_id == run_id)).one()
    offsets = connection.execute(select(input_offsets).where(input_offsets.c.run_id == run_id))
    return State(
        version=version,
        steps_per_version=steps or 1,
        inserts=counts.inserts,
        samples=counts.samples,
        offsets={(row.topic, row.partition): row.next_offset for row in offsets},
    )


def load_decks(connection: Connection, run_id: str) -> Decks:
    """Return the decks as far as they were dealt."""
    counts = connection.execute(select(sampler_state).where(sampler_state.c.run_id == run_id)).one()
    dealt: dict[str, dict[int, int]] = {"online": {}, "offline": {}}
    for row in connection.execute(select(decks).where(decks.c.run_id == run_id)):
        dealt[row.deck][row.prompt_id] = row.dealt
    seed = seed_of(run_id)
    return Decks(
        online=Deck("online", seed, dealt["online"], counts.online_floor),
        offline=Deck("offline", seed, dealt["offline"], counts.offline_floor),
    )
