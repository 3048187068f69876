"""SIGKILL to the active buffer while another stands by: how long until the standby's first batch is on the wire?

    python -m tests.bench.buffer_takeover [--repeats N]

A dead buffer's lease runs out 4 to 5 s after its last renewal; the standby asks for it twice a second. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

from sqlalchemy import Engine, create_engine, select

from services.buffer.ledger import check
from services.buffer.migrations import migrate
from services.buffer.restore import ensure_run
from services.buffer.state_tables import leases
from tba_cli.local import kafka_broker, postgres
from tba_cli.local.ports import free_ports, is_ready
from tba_common.messages import Group
from tests.buffer.others import Others, until
from tests.buffer.world import add_task
from tests.logins import as_role, make_logins

_NUMBERS: Final = {
    "TBA_GROUPS_PER_BATCH": "2",
    "TBA_TRAJECTORIES_PER_GROUP": "4",
    "TBA_MIN_SIZE": "16",
    "TBA_CAPACITY_PER_PROMPT": "8",
    "TBA_REISSUE_SECONDS": "3",
}
_WORKS_BATCHES: Final = 5  # before each kill


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Seconds since the kill."""

    to_lease: float
    to_batch: float


class _Watched(Others):
    """They know when a group came last."""

    came_at = float("-inf")

    def _hold(self, group: Group) -> None:
        self.came_at = time.monotonic()
        super()._hold(group)


class _Buffers:
    """Buffer processes of one run, found by their number."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start one more, and return when it works or stands by."""
        health = f"127.0.0.1:{free_ports(1)[0]}"
        environment = os.environ | self._environment | {"TBA_HEALTH_ADDRESS": health}
        command = [sys.executable, "-m", "services.buffer", "serve"]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        self.running[process.pid] = process
        while not is_ready(health):
            time.sleep(0.02)

    def kill(self, pid: int) -> float:
        """SIGKILL to one; return when."""
        process = self.running.pop(pid)
        at = time.monotonic()
        process.kill()
        process.wait()
        return at

    def kill_all(self) -> None:
        """End."""
        for pid in list(self.running):
            self.kill(pid)


def measure(engine: Engine, buffers: _Buffers, others: _Watched) -> TakeOver:
    """Kill the buffer that holds the lease; what it had sent is taken in before the lease can have run out."""
    until(others, partial(others.has_trained, others.trained + _WORKS_BATCHES))
    pid, epoch = _holder(engine)
    killed_at = buffers.kill(pid)
    until(others, lambda: time.monotonic() > killed_at + 1.0)
    others.came_at = float("-inf")
    found: dict[str, float] = {}

    def has_sent() -> bool:
        if "lease" not in found and _holder(engine)[1] > epoch:
            found["lease"] = time.monotonic()
        return others.came_at > killed_at

    until(others, has_sent)
    assert _holder(engine)[1] == epoch + 1, "expected the standby to hold the lease"
    return TakeOver(found.get("lease", others.came_at) - killed_at, others.came_at - killed_at)


def _holder(engine: Engine) -> tuple[int, int]:
    """The process that holds the lease, and its epoch."""
    with engine.connect() as connection:
        row = connection.execute(select(leases.c.owner, leases.c.epoch)).one()
    return int(row.owner.split("/")[1]), row.epoch


@contextmanager
def _line(run_id: str) -> Iterator[tuple[Engine, _Buffers, _Watched]]:
    with ExitStack() as stack:
        directory = stack.enter_context(TemporaryDirectory())
        servers = stack.enter_context(kafka_broker.running())
        url = stack.enter_context(postgres.running(Path(directory) / "postgres"))
        make_logins(url)
        migrate(url)
        engine = create_engine(url)
        stack.callback(engine.dispose)
        with engine.begin() as connection:
            ensure_run(connection, run_id)
            add_task(connection, run_id, train=12)
        place = {"TBA_DATABASE_URL": as_role(url, "tba_buffer"), "TBA_KAFKA_SERVERS": servers, "TBA_RUN_ID": run_id}
        others = _Watched(servers, run_id, stack)
        buffers = _Buffers(place | _NUMBERS)
        stack.callback(buffers.kill_all)
        yield engine, buffers, others


def main() -> None:
    """Kill, wait, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.buffer_takeover", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    run_id = f"takeover-{uuid.uuid4().hex[:8]}"
    found = []
    with _line(run_id) as (engine, buffers, others):
        buffers.start()
        print(f"{'repeat':>6} {'to the lease':>14} {'to the batch':>14}")
        for repeat in range(asked.repeats):
            buffers.start()
            found.append(measure(engine, buffers, others))
            print(f"{repeat + 1:6} {found[-1].to_lease:12.2f} s {found[-1].to_batch:12.2f} s", flush=True)
        buffers.kill_all()
        with engine.connect() as connection:
            faults = check(connection, run_id)
    to_batch = [one.to_batch for one in found]
    figures = {
        "repeats": len(found),
        "to_lease_median_seconds": round(median(one.to_lease for one in found), 2),
        "to_batch_median_seconds": round(median(to_batch), 2),
        "to_batch_longest_seconds": round(max(to_batch), 2),
        "ledger_faults": len(faults),
        "changed_groups": len(others.changed),
    }
    print(json.dumps(figures))
    if faults or others.changed:
        changed = sorted(set(others.changed))
        raise SystemExit(f"expected books that balance and groups that stay, got {faults} and changed groups {changed}")


if __name__ == "__main__":
    main()
