"""A policy that fits a test: a random Llama, one token a character, published through the real weight store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from services.generator.engine import Finished, Request
from services.generator.hf_engine import HfEngine
from tba_common.messages import Weights
from tba_common.weights import Canary, Snapshot, WeightStore

PAD, EOS = 0, 1
CONTEXT = 64
VOCABULARY = ["<pad>", "<eos>", *"0123456789+=abcdefgh"]
#: Three sequences that the canary looks at.
SEQUENCES = ((2, 3, 4, 5, 6), (7, 8, 9), (10, 11, 12, 13))
CUTS = (2, 1, 2)
TEMPLATE = "{% for message in messages %}{{ message['content'] }}={% endfor %}"


@dataclass(frozen=True)
class Policy:
    """Weights to publish; the same seed gives the same weights."""

    seed: int = 0
    tied: bool = False
    width: int = 32
    pad_is_eos: bool = False
    chat_template: str | None = None

    def model(self) -> Any:
        torch.manual_seed(self.seed)
        config = LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=self.width,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=self.tied,
            initializer_range=0.25,  # wide: distributions far from uniform tell bugs apart
            bos_token_id=None,
            eos_token_id=EOS,
            pad_token_id=EOS if self.pad_is_eos else PAD,
        )
        llama: Any = LlamaForCausalLM
        return llama(config).eval()

    def tokenizer(self) -> Any:
        vocabulary = {token: i for i, token in enumerate(VOCABULARY)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        tokenizer.decoder = decoders.Fuse()
        special = {"pad_token": "<eos>" if self.pad_is_eos else "<pad>", "eos_token": "<eos>"}
        fast: Any = PreTrainedTokenizerFast
        return fast(
            tokenizer_object=tokenizer, chat_template=self.chat_template, clean_up_tokenization_spaces=False, **special
        )


@torch.no_grad()
def logprob_of(model: Any, sequence: tuple[int, ...], cut: int) -> float:
    logits = model(torch.tensor([sequence])).logits[0].double()
    return float(sum(logits[i - 1].log_softmax(-1)[sequence[i]] for i in range(cut, len(sequence))))


class Publisher:
    """Publishes policies as versions of one store, each with an honest canary."""

    def __init__(self, root: Path) -> None:
        self.store = WeightStore(root)

    def publish(self, version: int, policy: Policy, *, change: Callable[[Any], None] = lambda model: None) -> Weights:
        """`change` alters the model after the canary was recorded, as damage would."""
        model, tokenizer = policy.model(), policy.tokenizer()
        sums = tuple(logprob_of(model, sequence, cut) for sequence, cut in zip(SEQUENCES, CUTS, strict=True))
        with torch.no_grad():
            change(model)

        def write(directory: Path) -> None:
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)

        canary = Canary(token_ids=SEQUENCES, prompt_lengths=CUTS, logprobs=sums)
        return self.store.publish("run", version, version, write, canary=canary, steps_per_version=1)

    def snapshot(self, version: int, policy: Policy) -> Snapshot:
        return self.store.fetch(self.publish(version, policy))


REQUEST = Request(
    request_id=1,
    text="12+34=",
    prompt_format="text",
    completions=4,
    temperature=1.0,
    top_p=1.0,
    max_new_tokens=6,
)


def sample(engine: HfEngine, **changes: Any) -> Finished:
    """Answer one request alone."""
    engine.submit(replace(REQUEST, **changes))
    finished: list[Finished] = []
    while not finished:
        finished = engine.collect(0)
    return finished[0]
