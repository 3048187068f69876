"""What a scorer is, and the one place where scorers are chosen by name. A new scorer is one file and one case here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from services.reward.settings import RewardSettings
from tba_common.messages import Float32s, Rollout


class ScoringFailed(Exception):
    """The scorer could not come to a score: too slow, or it broke down over this rollout. Never a zero reward."""


class Scorer(Protocol):
    """Gives each completion of a rollout a number. Called from several threads at once."""

    @property
    def name(self) -> str:
        """The name in `tba_common.tasks.SCORERS`."""

    @property
    def version(self) -> str:
        """Changes whenever the same completion may get another score."""

    def score(self, rollout: Rollout, options: Mapping[str, Any]) -> Float32s:
        """Return one value for each completion, in their order, shape [completions].

        Raises:
            BadMessage: options or prompt are not what this scorer needs; says expected and got.
            ScoringFailed: no fault of the message's form, but there is no score.
        """


@contextmanager
def open_scorer(name: str, settings: RewardSettings) -> Iterator[Scorer]:
    """A scorer ready to score, with everything warm; its processes end with the context.

    Raises:
        ValueError: no scorer has this name.
    """
    match name:
        case "verifier":
            from services.reward.verifier import open_verifier

            with open_verifier(settings) as verifier:
                yield verifier
        case _:
            raise ValueError(f"unknown scorer {name!r}")
