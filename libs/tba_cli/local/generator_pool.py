"""The generators of a machine whose number changes: who runs, and how many of them read prompts.

A generator reads from when it is ready, not before: work never waits for one that loads. One that goes first finishes
or hands back what it has, and only then do the others take over its partitions: nothing is sampled twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tba_cli.local.supervisor import Supervisor


class GeneratorPool:
    """The first of `names` that are wanted run. `count_file` tells them how many of them read.

    `running` is how many are started with the supervisor.
    """

    def __init__(self, supervisor: Supervisor, names: Sequence[str], count_file: Path, *, running: int) -> None:
        self._supervisor, self._names, self._file = supervisor, names, count_file
        self._wanted = running
        self._read(running)

    @property
    def wanted(self) -> int:
        """How many there should be."""
        return self._wanted

    @property
    def reading(self) -> int:
        """How many share the prompts now."""
        return self._reading

    def scale(self, count: int) -> None:
        """Want another number, within what there may be; `turn` brings it about."""
        self._wanted = min(count, len(self._names))

    def turn(self) -> None:
        """Start and end processes, and share the prompts among those that are there. Never waits."""
        for index, name in enumerate(self._names):
            if index < self._wanted and self._supervisor.is_parked(name):
                self._supervisor.resume(name)
            elif index >= self._wanted and not self._supervisor.is_parked(name):
                self._supervisor.park(name)
        reading = self._reading
        if reading > self._wanted:
            pids = self._supervisor.pids()
            if not any(name in pids for name in self._names[self._wanted :]):
                reading = self._wanted
        while reading < self._wanted and self._supervisor.is_ready(self._names[reading]):
            reading += 1
        if reading != self._reading:
            self._read(reading)

    def _read(self, count: int) -> None:
        aside = self._file.with_suffix(".tmp")
        aside.write_text(str(count))
        aside.replace(self._file)  # a reader sees the old count or the new one
        self._reading = count
