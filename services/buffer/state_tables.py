"""The rest of the schema: what the buffer must remember beside the rows, so that a restart changes no draw.

Nobody else reads these tables.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, CheckConstraint, Column, DateTime, ForeignKey, Integer, Table, Text

from services.buffer.tables import metadata

__all__: Final = ["decks", "input_offsets", "leases", "metadata", "sampler_state"]

# What the sampler must remember beside the rows: how much came in, went out and was thrown away, and how far
# each deck of prompts has been dealt (buffer/deck.py).
sampler_state = Table(
    "sampler_state",
    metadata,
    Column("run_id", Text, ForeignKey("runs.run_id"), primary_key=True),
    Column("inserts", BigInteger, nullable=False, server_default="0"),  # trajectories taken in, duplicates too
    Column("samples", BigInteger, nullable=False, server_default="0"),  # trajectories drawn, repeats too
    Column("evicted", BigInteger, nullable=False, server_default="0"),  # rows the reaper deleted
    Column("online_floor", Integer, nullable=False, server_default="0"),
    Column("offline_floor", Integer, nullable=False, server_default="0"),
)

decks = Table(
    "decks",
    metadata,
    Column("run_id", Text, ForeignKey("runs.run_id"), primary_key=True),
    Column("deck", Text, primary_key=True),
    Column("prompt_id", BigInteger, primary_key=True),
    Column("dealt", Integer, nullable=False),  # times the prompt was drawn from this deck
    CheckConstraint("deck IN ('online', 'offline')", name="deck"),
)

# Where to read on: committed with the rows that the records before it became.
input_offsets = Table(
    "input_offsets",
    metadata,
    Column("run_id", Text, ForeignKey("runs.run_id"), primary_key=True),
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("next_offset", BigInteger, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),  # a writer whose epoch is old must not commit
    Column("expires_at", DateTime(timezone=True), nullable=False),
)
