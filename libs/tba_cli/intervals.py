"""How far an accuracy can be trusted. Pure."""

from __future__ import annotations

import math
from typing import Final

#: The standard normal distribution holds 95% between this and its negative.
_Z: Final = 1.959964


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95% interval of a share of `n` independent trials (Wilson, 1927, JASA 22:209).

    Where each trial is itself the mean of several answers, its variance is smaller than that of a single one: then
    the interval is a cautious one.
    """
    middle = share + _Z**2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    whole = 1 + _Z**2 / n
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)
