"""One record as it came from the wire: bytes, decoded only when asked, so that bad bytes harm nobody else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tba_common.codec import BadMessage, decode
from tba_common.messages import Message


@dataclass(frozen=True, slots=True)
class Record:
    """Where it lay and what it holds. Headers: `schema` names the message type, `run` the run it belongs to."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: Mapping[str, bytes]

    def message(self) -> Message:
        """Decode by the `schema` header.

        Raises:
            BadMessage: no such header, or a body that does not fit it.
        """
        schema = self.headers.get("schema")
        if schema is None:
            raise BadMessage(f"no schema header: expected one such as rollout/1, got {sorted(self.headers)}")
        return decode(schema.decode("utf-8", "replace"), self.value)

    def belongs_to(self, run_id: str) -> bool:
        """Whether it is for this run. One without a `run` header is, so that it is rejected and not overlooked."""
        return self.headers.get("run", run_id.encode()) == run_id.encode()
