"""What each situation installs, at one glance: a change of it must be meant.

`python -m tests.chart.test_golden` writes the list anew.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tests.chart.rendering import SITUATIONS, manifests_of
from tests.chart.rules.rule import label

INVENTORY: Final = Path(__file__).parent / "golden/inventory.txt"


def inventory() -> str:
    """Kinds and names, a line each; where an object is not in every situation, in which it is."""
    where: dict[str, list[str]] = {}
    for situation in SITUATIONS:
        for manifest in manifests_of(situation):
            name = re.sub(r"-[0-9a-f]{8}$", "-HASH", label(manifest)).replace("/tba-red", "/tba")
            where.setdefault(name, []).append(situation)
    lines = (f"{name}: {', '.join(found)}" if len(found) < len(SITUATIONS) else name for name, found in where.items())
    return "".join(f"{line}\n" for line in sorted(lines))


def test_what_is_installed_is_what_was_meant() -> None:
    assert inventory() == INVENTORY.read_text()


if __name__ == "__main__":
    INVENTORY.write_text(inventory())
