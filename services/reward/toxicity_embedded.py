"""The judge of toxicity that comes with us: a linear model over words, in the wheel of alt-profanity-check.

That package unpickles its two data files when it is imported, which may run any code that is in them. So before the
import they are compared with the digests of the release that was examined (docs/decisions/0007).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

import numpy as np

from services.reward.toxicity import ToxicityJudge, Utterance
from services.reward.toxicity_settings import ToxicitySettings

_PACKAGE: Final = "alt-profanity-check"
_SHA256: Final = {
    "profanity_check/data/model.joblib": "aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b",
    "profanity_check/data/vectorizer.joblib": "19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831",
}
_LEAST: Final = 1e-12  # of a probability, which may round to 0


@contextmanager
def open_judge(name: str, settings: ToxicitySettings) -> Iterator[tuple[ToxicityJudge, str]]:
    """The embedded judge and its version.

    Raises:
        ValueError: a data file of the package is not the one that was examined.
    """
    package = distribution(_PACKAGE)
    for file, expected in _SHA256.items():
        check_digest(Path(str(package.locate_file(file))), expected)
    yield _judge, f"{_PACKAGE}-{package.version}"


def check_digest(path: Path, expected: str) -> None:
    """Refuse a file with another content.

    Raises:
        ValueError: its sha256 is not the expected one.
    """
    if (got := hashlib.sha256(path.read_bytes()).hexdigest()) != expected:
        raise ValueError(f"{path}: expected sha256 {expected}, got {got}; it will not be loaded")


def _judge(utterances: Sequence[Utterance]) -> Sequence[float]:
    from profanity_check import predict_prob

    probabilities = predict_prob([utterance.text for utterance in utterances])
    return [float(value) for value in np.log(np.maximum(probabilities, _LEAST))]
