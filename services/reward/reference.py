"""The reference: log pi_ref of each completion, computed off the learner, so that a big one needs no second copy.

It reads token ids as they were sampled. Text alone, as when given answers are graded, has no log-probability here:
tokens of another making would have another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from transformers import AutoModelForCausalLM

from services.reward.causal_logprobs import CausalLogprobs, Continuation
from services.reward.frozen_model import FrozenModel, load_frozen
from services.reward.micro_batches import MicroBatches
from services.reward.reference_settings import ReferenceSettings
from services.reward.scorer import Judgement, options_as
from tba_common.codec import BadMessage
from tba_common.messages import Rollout
from tba_common.scorer_options import ReferenceOptions


class Reference:
    """A `Scorer` whose value is a log-probability in nats, at the temperature of the policy that is trained."""

    def __init__(self, name: str, frozen: FrozenModel, batches: MicroBatches[Continuation, float]) -> None:
        self.name: Final = name
        self.version: Final = frozen.version
        self._frozen = frozen
        self._batches = batches

    def score(self, rollout: Rollout, options: Mapping[str, Any]) -> Judgement:
        """Sum the reference's log-probabilities over each completion's tokens, EOS included.

        Raises:
            BadMessage: no token ids, more of them than the model can read, or ids that it does not know.
        """
        options_as(ReferenceOptions, options)
        rows = self._rows(rollout)
        return Judgement(np.array(self._batches(rows), dtype=np.float32))

    def warm_up(self) -> None:
        """Read something, so that the first rollout does not wait."""
        self._batches([Continuation([0], [0])])

    def _rows(self, rollout: Rollout) -> list[Continuation]:
        prompt = rollout.prompt_token_ids.tolist()
        temperature = rollout.prompt.sampling.temperature or 1.0  # greedy samples carry log-probabilities at 1
        rows = [Continuation(prompt, completion.token_ids.tolist(), temperature) for completion in rollout.completions]
        vocabulary = self._frozen.model.config.get_text_config().vocab_size
        for place, row in enumerate(rows, start=1):
            what = f"completion {place} of {len(rows)}"
            if not row.prompt or not row.tokens:
                raise BadMessage(
                    f"{what}: expected token ids of prompt and completion, as sampled by a policy, got "
                    f"{len(row.prompt)} and {len(row.tokens)}; given texts have no reference log-probability"
                )
            self._frozen.check_length(len(row), f"prompt with {what}")
            if not 0 <= min(*row.prompt, *row.tokens) <= max(*row.prompt, *row.tokens) < vocabulary:
                raise BadMessage(
                    f"{what}: expected token ids below {vocabulary}; is the reference of another tokenizer?"
                )
        return rows


@contextmanager
def open_reference(name: str, settings: ReferenceSettings) -> Iterator[Reference]:
    """A reference that has read once. Its weights are float32 unless the settings say bfloat16, like the learner's.

    Raises:
        OSError, ValueError: no such model, or not a whole one.
    """
    frozen = load_frozen(AutoModelForCausalLM, settings, dtype="float32" if settings.dtype == "auto" else None)
    with MicroBatches(CausalLogprobs(frozen), name, settings, length=len) as batches:
        scorer = Reference(name, frozen, batches)
        scorer.warm_up()
        yield scorer
