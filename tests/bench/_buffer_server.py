"""A PostgreSQL server to be measured: what it costs in CPU and log, and how it dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, create_engine, text

from tba_cli.local import postgres
from tba_cli.local.ports import free_ports

#: Of a small production server; fsync is on.
SETTINGS: Final = {"shared_buffers": "1GB", "max_wal_size": "1GB"}
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Server:
    """One server in a directory, at one address however often it dies."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self._directory, self._port = directory, free_ports(1)[0]
        self._server = postgres.start(directory, self._port)
        engine = create_engine(self._server.url)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for name, value in (SETTINGS | settings).items():
                connection.execute(text(f"ALTER SYSTEM SET {name} = '{value}'"))
        engine.dispose()
        self._server.stop()
        self.start()

    def start(self) -> None:
        """Start it, and replay what a crash left."""
        self._server = postgres.start(self._directory, self._port)

    def stop(self) -> None:
        """End it in order."""
        self._server.stop()

    def database(self, name: str) -> str:
        """Create an empty database; return its URL."""
        return postgres.create_database(self._server.url, name)

    def kill(self) -> None:
        """SIGKILL to all of it at once; a new server finds the shared memory in use while one of them is going."""
        killed = self._processes()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        self._server.process.wait()
        while any(_is_running(pid) for pid in killed):
            time.sleep(0.01)

    def cpu_seconds(self) -> float:
        """What its living processes have used."""
        return sum(_cpu_seconds(pid) for pid in self._processes())

    def _processes(self) -> list[int]:
        first = int((self._directory / "data/postmaster.pid").read_text().splitlines()[0])
        children = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [first, *(pid for pid in children if _parent(pid) == first)]


class Stalled:
    """How much of a time somebody waited for a core, in percent: /proc/pressure/cpu, or None where there is none."""

    def __init__(self) -> None:
        self._began, self._stalled = time.monotonic(), _stalled_microseconds()

    def percent(self) -> float | None:
        """Since the start."""
        stalled = _stalled_microseconds()
        if stalled is None or self._stalled is None:
            return None
        return round((stalled - self._stalled) / 1e4 / max(time.monotonic() - self._began, 1e-6), 1)


def wal_bytes(connection: Connection) -> int:
    """Where the write-ahead log ends."""
    return int(connection.execute(text("SELECT pg_current_wal_insert_lsn() - '0/0'")).scalar_one())


def wal_to_replay(connection: Connection) -> int:
    """Bytes of log since the last checkpoint: what a crash would have to replay."""
    query = "SELECT pg_current_wal_lsn() - redo_lsn FROM pg_control_checkpoint()"
    return int(connection.execute(text(query)).scalar_one())


def _stalled_microseconds() -> int | None:
    file = Path("/proc/pressure/cpu")
    return int(file.read_text().splitlines()[0].rpartition("total=")[2]) if file.exists() else None


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []  # it ended while we looked


def _is_running(pid: int) -> bool:
    return _stat(pid)[:1] not in ([], ["Z"])


def _parent(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _cpu_seconds(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0
