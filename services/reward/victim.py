"""The victim: a frozen language model that answers each completion as if a user had sent it (automated red-teaming).

Its answers travel on with the rollout, for whatever judges them. The same order gets the same answers again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from transformers import AutoModelForCausalLM

from services.reward.frozen_model import FrozenModel, load_frozen
from services.reward.micro_batches import MicroBatches
from services.reward.model_text import chat_token_ids
from services.reward.scorer import Judgement, options_as
from services.reward.victim_sampling import Answer, Question, VictimSampler
from services.reward.victim_settings import VictimSettings
from tba_common.codec import BadMessage
from tba_common.messages import Rollout
from tba_common.scorer_options import VictimOptions
from tba_common.tasks import TEXT


class Victim:
    """A `Scorer` whose value is the mean length of the answers in tokens."""

    def __init__(
        self, name: str, frozen: FrozenModel, batches: MicroBatches[Question, Answer], text_template: str
    ) -> None:
        self.name: Final = name
        self.version: Final = frozen.version
        self._frozen = frozen
        self._batches = batches
        self._text_template = text_template

    def score(self, rollout: Rollout, options: Mapping[str, Any]) -> Judgement:
        """Answer each completion `samples` times.

        Raises:
            BadMessage: wrong options, no chat template, or an attack too long for the model with its answer.
        """
        wanted = options_as(VictimOptions, options)
        questions = [
            question
            for place, completion in enumerate(rollout.completions)
            for question in self._questions(completion.text, wanted, issue_id=rollout.prompt.issue_id, place=place)
        ]
        answers = self._batches(questions)
        shape = (len(rollout.completions), wanted.samples)
        tokens = np.array([answer.tokens for answer in answers], dtype=np.float32).reshape(shape)
        texts = [answer.text for answer in answers]
        starts = range(0, len(texts), wanted.samples)
        return Judgement(tokens.mean(axis=1), responses=tuple(tuple(texts[i : i + wanted.samples]) for i in starts))

    def warm_up(self) -> None:
        """Answer something, so that the first rollout does not wait."""
        self._batches([Question([0], temperature=1.0, top_p=1.0, max_new_tokens=1, seed=(0,))])

    def _questions(self, attack: str, wanted: VictimOptions, *, issue_id: int, place: int) -> list[Question]:
        if wanted.template == "chat":
            if not self._frozen.tokenizer.chat_template:
                raise BadMessage("template chat: expected a victim with a chat template, got one without")
            token_ids = chat_token_ids(self._frozen.tokenizer, ("user", attack), asks=True)
        else:
            token_ids = list(self._frozen.tokenizer(self._text_template.replace(TEXT, attack))["input_ids"])
        self._frozen.check_length(len(token_ids) and len(token_ids) + wanted.max_new_tokens, f"attack {place + 1}")
        seeds = ((issue_id, place, sample) for sample in range(wanted.samples))
        return [
            Question(token_ids, wanted.temperature, wanted.top_p, wanted.max_new_tokens, seed=seed) for seed in seeds
        ]


@contextmanager
def open_victim(name: str, settings: VictimSettings) -> Iterator[Victim]:
    """A victim that has answered once.

    Raises:
        OSError, ValueError: no such model, or not a whole one.
    """
    frozen = load_frozen(AutoModelForCausalLM, settings)
    with MicroBatches(VictimSampler(frozen), name, settings, length=len) as batches:
        scorer = Victim(name, frozen, batches, settings.text_template)
        scorer.warm_up()
        yield scorer
