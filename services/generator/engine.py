"""What the worker asks of an engine: sample, answer, swap weights, prove them.

An engine may run what it has only inside `collect` (transformers), or batch continuously in the background
(vLLM): there, requests in flight live through `load`, and their completions carry the oldest version that
wrote any of their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tba_common.messages import Completion
from tba_common.weights import Snapshot


class UnusablePrompt(Exception):
    """The engine cannot sample this prompt with these options, and never will; says why."""


class Interrupted(Exception):
    """Sampling was broken off because the process has to stop; nobody answered what was in flight."""


class LoadError(Exception):
    """The snapshot does not fit the engine; what was loaded before still is."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how its completions are drawn. `temperature` 0 means greedy."""

    request_id: int
    text: str
    prompt_format: Literal["text", "chat"]
    completions: int
    temperature: float
    top_p: float
    max_new_tokens: int
    system: str | None = None  # of a chat


@dataclass(frozen=True, slots=True)
class Finished:
    """All completions of one request, and the prompt as the policy read it."""

    request_id: int
    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]


class Engine(Protocol):
    """A language model that samples. Used from one thread.

    A completion's log-probabilities are those of the distribution it was drawn from, after temperature and
    top-p; a greedy completion has no such distribution and records those at temperature 1.
    """

    @property
    def policy_version(self) -> int | None:
        """The version that is loaded; None before the first `load`."""

    def submit(self, request: Request) -> None:
        """Tokenize the prompt and queue its completions.

        Raises:
            UnusablePrompt: too long for the model, no tokens, no chat template.
        """

    def collect(self, timeout_seconds: float) -> list[Finished]:
        """Return requests that have finished, waiting up to the timeout for the first where work runs by itself."""

    def read(self, request: Request, answers: Sequence[str]) -> Finished:
        """Tokenize the prompt and answers that are given, each ended by EOS, as if this version had written them.

        Nothing is sampled, so their log-probabilities are 0.

        Raises:
            UnusablePrompt: as `submit`, and where an answer does not fit or the policy has no EOS.
        """

    def load(self, snapshot: Snapshot) -> None:
        """Swap in the snapshot's weights, counting every tensor it names; later tokens are of its version.

        Raises:
            LoadError: missing, extra or misshapen tensors; the old weights keep serving.
        """

    def restore(self, snapshot: Snapshot) -> None:
        """Put `snapshot` back, because what was loaded since did not prove itself; what that touched is sampled anew.

        Raises:
            LoadError: it cannot be loaded any more.
        """

    def logprobs(self, sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> list[float]:
        """Sum of natural log-probabilities at temperature 1 of each sequence's tokens after its prompt."""

    def close(self) -> None:
        """Give up what is in flight and free the device."""
