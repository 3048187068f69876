"""SIGKILL to PostgreSQL and to the buffer at once, at full size and with a log to replay; then the first new batch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass

from sqlalchemy import func, select, text

from services.buffer.tables import batches
from tba_cli.local import kafka_broker
from tba_common.messages import Message, Prompt
from tests.bench._buffer_server import Server, wal_to_replay
from tests.bench._buffer_world import RUN, Store
from tests.buffer.others import Others, until
from tests.buffer.world import trajectories as answer


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds since the kill."""

    to_database: float
    to_batch: float
    wal_bytes: int  # that had to be replayed


class _Others(Others):
    """They know the tokens of the stored prompts."""

    def _answer(self, order: Prompt) -> Message:
        return answer(order, version=self.trained // 2, prompt_tokens=[1])


def measure_recovery(server: Server, store: Store) -> Recovery:
    """Let a real buffer dispatch batches, kill it with its database, start both again, wait for a new batch.

    The time holds the replay of the log, the expiry of the dead buffer's lease, and the rebuild of the index.
    """
    with store.engine.begin() as connection:
        connection.execute(text("DELETE FROM input_offsets"))
        connection.execute(text("DELETE FROM issues WHERE state = 'in_flight'"))
    store.lease.release()
    with ExitStack() as stack:
        servers = stack.enter_context(kafka_broker.running())
        environment = {"TBA_DATABASE_URL": store.url, "TBA_KAFKA_SERVERS": servers, "TBA_RUN_ID": RUN}
        environment |= {"TBA_CAPACITY_PER_PROMPT": "100", "TBA_TRAJECTORIES_PER_GROUP": "20", "TBA_MIN_SIZE": "0"}
        others = _Others(servers, RUN, stack)
        buffer = _serve(environment)
        stack.callback(lambda: buffer.kill())
        until(others, lambda: others.has_trained(3))
        with store.engine.connect() as connection:
            logged = wal_to_replay(connection)
        began = time.monotonic()
        server.kill()
        buffer.kill()
        buffer.wait()
        server.start()
        to_database = time.monotonic() - began
        store.engine.dispose()
        with store.engine.connect() as connection:
            last = connection.execute(select(func.max(batches.c.batch_id))).scalar_one()
        buffer = _serve(environment)
        until(others, lambda: any(batch_id > last for batch_id, _ in others.groups))
        to_batch = time.monotonic() - began
        buffer.kill()
        buffer.wait()
    return Recovery(to_database, to_batch, logged)


def _serve(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "services.buffer", "serve"]
    return subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.DEVNULL)
