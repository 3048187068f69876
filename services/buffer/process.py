"""The buffer as a process: it waits for the lease of its run, then makes turns until it is told to stop."""

from __future__ import annotations

import gc
import os
import socket
import uuid
from contextlib import ExitStack, closing
from typing import Final

from sqlalchemy import create_engine

from services.buffer.inbox import CONTROL
from services.buffer.intake import Intake
from services.buffer.lease import Lease
from services.buffer.migrations import SchemaError, require_head, wait_until_it_answers
from services.buffer.restore import ensure_run
from services.buffer.service import Buffer
from services.buffer.settings import BufferSettings
from tba_common import topics
from tba_common.delivery import DeadLetters, may_outlive_the_broker
from tba_common.kafka import Producer, Reader
from tba_common.lifecycle import Lifecycle

_STANDBY_SECONDS: Final = 0.5
#: One that stands still in a transaction, or whose node is cut off, holds the row of the lease.
_SESSION: Final = "-c idle_in_transaction_session_timeout=60s"


def main() -> None:
    """Be the buffer of the run: wait for the lease, then work until SIGTERM.

    Raises:
        SystemExit: the database has another schema.
    """
    settings = BufferSettings.from_environment()
    with Lifecycle("tba-buffer", settings) as life:
        engine = create_engine(settings.database_url, connect_args={"options": _SESSION})
        wait_until_it_answers(engine, life.stop)
        if life.stop.is_set():
            return
        try:
            require_head(engine)
        except SchemaError as error:
            raise SystemExit(str(error)) from None
        with engine.begin() as connection:
            ensure_run(connection, settings.run_id)
        owner = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        lease = Lease(engine, f"buffer/{settings.run_id}", owner)
        life.ready(True)
        if _wait_for(lease, life):
            _work(settings, lease, life)
        engine.dispose()


def _wait_for(lease: Lease, life: Lifecycle) -> bool:
    """Stand by until the lease is ours; return False when told to stop before."""
    while not life.stop.is_set():
        if lease.acquire():
            return True
        life.beat()
        life.stop.wait(_STANDBY_SECONDS)
    return False


def _work(settings: BufferSettings, lease: Lease, life: Lifecycle) -> None:
    with may_outlive_the_broker(life.stop), ExitStack() as stack:
        producer = stack.enter_context(closing(Producer(settings.brokers, settings.run_id, stop=life.stop)))
        rejects = DeadLetters(producer, settings.run_id, "tba-buffer")
        buffer = Buffer(settings, lease, producer, rejects)
        gc.freeze()  # the index stays: nobody need look for garbage in it
        arrivals, control = (
            Reader(settings.brokers, settings.run_id, [topic.name for topic in names], buffer.offsets)
            for names in ((topics.TRAJECTORIES,), CONTROL)
        )
        reader = stack.enter_context(closing(Intake(arrivals, control)))
        while not life.stop.is_set():
            buffer.step(reader)
            life.beat()
    lease.release()
