"""Following a log file: the processes write their files themselves, so that no line is lost with the supervisor."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_MAX_BYTES: Final = 1 << 20


class LogTail:
    """The whole lines that were added to a file since the last look; the file need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def lines(self) -> list[str]:
        """Return the new lines, without their ends. An unfinished one is left for the next look."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            text = file.read(_MAX_BYTES)
        whole = text if len(text) == _MAX_BYTES else text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode(errors="replace").splitlines()


def last_lines(path: Path, count: int) -> str:
    """The end of a log, for an error message."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _MAX_BYTES))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])
