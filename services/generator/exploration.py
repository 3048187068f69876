"""Off-policy exploration, drawn once per group (arXiv:2503.18929, section 4.1). Pure: randomness is an argument.

TB is valid for any sampler with full support, so a group sampled elsewhere needs no correction, only a record.
"""

from __future__ import annotations

import numpy as np

from tba_common.tasks import Sampling


def explore(sampling: Sampling, rng: np.random.Generator) -> tuple[float, float]:
    """Return the temperature and top-p to sample one group with; greedy sampling never explores."""
    exploration = sampling.exploration
    if exploration is None or sampling.temperature == 0 or rng.random() >= exploration.probability:
        return sampling.temperature, sampling.top_p
    return (
        float(rng.uniform(exploration.temperature_low, exploration.temperature_high)),
        float(rng.uniform(exploration.top_p_low, exploration.top_p_high)),
    )
