"""What only waits ends when it is told to. A container's first process ignores a signal that it does not handle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Final

import pytest

NOBODY: Final = {
    "TBA_KAFKA_SERVERS": "127.0.0.1:1",
    "TBA_DATABASE_URL": "postgresql+psycopg://tba@127.0.0.1:1/tba",
    "TBA_URL": "http://127.0.0.1:1",
}


@pytest.mark.parametrize(
    "command",
    [
        ("tba_common.topics", "--wait"),
        ("services.buffer", "await-schema"),
        ("services.buffer", "migrate"),
        ("tba_cli.seed", "task"),
    ],
    ids=" ".join,
)
def test_it_handles_sigterm_itself(command: tuple[str, ...]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", *command], env=os.environ | NOBODY, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert any("waiting for" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
