"""Every table of the database: importing this file makes `metadata` complete, for migrations and tests."""

from __future__ import annotations

from typing import Final

from services.buffer import request_tables, scaling_tables, state_tables
from services.buffer.tables import metadata

__all__: Final = ["metadata", "request_tables", "scaling_tables", "state_tables"]
