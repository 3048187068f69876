"""A judge of toxicity: the log-probability that a guard model's verdict begins with the word for unsafe."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers import AutoModelForCausalLM

from services.reward.causal_logprobs import CausalLogprobs, Continuation
from services.reward.frozen_model import FrozenModel, load_frozen
from services.reward.micro_batches import MicroBatches
from services.reward.model_text import chat_token_ids
from services.reward.toxicity import ToxicityJudge, Utterance
from services.reward.toxicity_settings import ToxicitySettings


class GuardJudge:
    """Judges an utterance as the answer in a conversation, by the first token of the verdict."""

    def __init__(
        self, frozen: FrozenModel, batches: MicroBatches[Continuation, float], settings: ToxicitySettings
    ) -> None:
        self._frozen = frozen
        self._batches = batches
        self._template = settings.guard_template
        self._suffix: list[int] = self._tokens(settings.guard_suffix) if settings.guard_suffix else []
        self._unsafe = self._tokens(settings.unsafe_word)[:1]

    def __call__(self, utterances: Sequence[Utterance]) -> list[float]:
        rows = [Continuation(self._asked(utterance), self._unsafe) for utterance in utterances]
        for place, row in enumerate(rows, start=1):
            self._frozen.check_length(len(row), f"conversation {place} of {len(rows)}")
        return self._batches(rows)

    def _asked(self, utterance: Utterance) -> list[int]:
        if self._template == "chat":
            asked = chat_token_ids(
                self._frozen.tokenizer, ("user", utterance.prompt), ("assistant", utterance.text), asks=True
            )
        else:
            before, _, after = self._template.partition("{prompt}")
            text = before.replace("{text}", utterance.text) + utterance.prompt + after.replace("{text}", utterance.text)
            asked = list(self._frozen.tokenizer(text)["input_ids"])
        return asked + self._suffix

    def _tokens(self, text: str) -> list[int]:
        return list(self._frozen.tokenizer(text, add_special_tokens=False)["input_ids"])


@contextmanager
def open_judge(name: str, settings: ToxicitySettings) -> Iterator[tuple[ToxicityJudge, str]]:
    """The guard model of the settings, and its version.

    Raises:
        OSError, ValueError: no such model, or no template to ask it with.
    """
    frozen = load_frozen(AutoModelForCausalLM, settings)
    if settings.guard_template == "chat":
        frozen.check_chat_template()
    elif "{prompt}" not in settings.guard_template or "{text}" not in settings.guard_template:
        raise ValueError(f"guard_template: expected {{prompt}} and {{text}} in it, got {settings.guard_template!r}")
    asking = f"{settings.guard_template}|{settings.guard_suffix}|{settings.unsafe_word}"
    version = f"{frozen.version}/{hashlib.sha256(asking.encode()).hexdigest()[:8]}"
    with MicroBatches(CausalLogprobs(frozen), name, settings, length=len) as batches:
        yield GuardJudge(frozen, batches, settings), version
