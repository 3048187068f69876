"""How many items a verifier checks on a core, and what the reward-model scorer costs over the model alone.

    python -m tests.bench.rewards

The same texts are scored by the service's scorer, from several threads as its worker does, and by a plain loop over
batches of the same model before and after it. The last line is one JSON object.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from services.reward.reward_model import open_reward_model
from services.reward.reward_model_settings import RewardModelSettings
from services.reward.scorer import Scorer
from services.reward.verifier import open_verifier
from services.reward.verifier_settings import VerifierSettings
from tba_common.messages import Rollout
from tests.reward import tiny_models
from tests.reward.rollouts import prompt, rollout

GROUPS: Final = 24
GROUP: Final = 8
BATCH: Final = 32  # of the plain loop, in the order the texts come
THREADS: Final = 8
ROUNDS: Final = 3
VERIFIED: Final = {"exact": "19", "last_number": "so it is 12, or 19.", "math": r"\boxed{\frac{38}{2}}"}


def main() -> None:
    figures = dict(verifier())
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        rates = reward_model(Path(folder))
    show(figures, rates)
    result = {
        "verifier_items_per_second_core": {match: round(rate) for match, rate in figures.items()},
        "reward_model_ratio": round(rates.scorer / rates.plain, 3),
        "reward_model_ratio_to_sorted": round(rates.scorer / rates.ordered, 3),
        "reward_model_tokens_per_second": round(rates.scorer),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    print(json.dumps(result))


def verifier() -> Iterator[tuple[str, float]]:
    """Completions checked a second by one worker process, by rule."""
    with open_verifier("verifier", VerifierSettings(evaluation_processes=1)) as scorer:
        for match, text in VERIFIED.items():
            groups = [rollout(*[text] * 16) for _ in range(25)]
            seconds = timed(partial(score_all, scorer, groups, {"match": match}))
            yield match, 16 * len(groups) / seconds


def build(folder: Path) -> None:
    """A Llama of 3.5 million weights with a scalar head: large enough to be what the time goes to."""
    torch.manual_seed(0)
    kinds: Any = LlamaConfig, LlamaForSequenceClassification
    config = kinds[0](
        vocab_size=len(tiny_models.VOCABULARY),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=tiny_models.PAD,
        eos_token_id=tiny_models.EOS,
        num_labels=1,
    )
    kinds[1](config).save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)


class Rates(NamedTuple):
    """Tokens a second, padding not counted."""

    scorer: float
    plain: float
    ordered: float  # the plain loop over texts sorted by length, which takes knowing them all at once


def reward_model(folder: Path) -> Rates:
    """The same texts by the scorer and by the plain loop."""
    rng = random.Random(0)
    order = prompt(reference=None)
    groups = [
        rollout(*["".join(rng.choices("abcdefgh ", k=rng.randint(8, 200))) for _ in range(GROUP)], of=order)
        for _ in range(GROUPS)
    ]
    texts = [order.text + completion.text for group in groups for completion in group.completions]
    tokens = sum(len(text) + 1 for text in texts)  # one a character, and EOS
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    if torch.cuda.is_available():
        model = model.to("cuda", torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scorer, plain, ordered = list[float](), list[float](), list[float]()
    with open_reward_model("reward_model", RewardModelSettings(model=str(folder))) as opened:
        for _ in range(ROUNDS):  # in turn, because machines are noisy
            plain.append(timed(partial(plain_loop, model, tokenizer, texts)))
            ordered.append(timed(partial(plain_loop, model, tokenizer, sorted(texts, key=len))))
            scorer.append(timed(partial(score_all, opened, groups, {})))
    return Rates(*(tokens / min(seconds) for seconds in (scorer, plain, ordered)))


@torch.inference_mode()
def plain_loop(model: Any, tokenizer: Any, texts: Sequence[str]) -> None:
    for start in range(0, len(texts), BATCH):
        batch = [text + tokenizer.eos_token for text in texts[start : start + BATCH]]
        model(**tokenizer(batch, padding=True, return_tensors="pt").to(model.device)).logits.float().cpu()


def score_all(scorer: Scorer, groups: Sequence[Rollout], options: dict[str, Any]) -> None:
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda group: scorer.score(group, options), groups))


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def show(figures: dict[str, float], rates: Rates) -> None:
    table = Table("what", "figure")
    for match, rate in figures.items():
        table.add_row(f"verifier, {match}: completions a second, one worker process", f"{rate:,.0f}")
    table.add_row("reward model, scorer: tokens a second, padding not counted", f"{rates.scorer:,.0f}")
    table.add_row(f"reward model, plain loop over batches of {BATCH}", f"{rates.plain:,.0f}")
    table.add_row("reward model, plain loop over texts sorted by length", f"{rates.ordered:,.0f}")
    table.add_row("ratio to the plain loop", f"{rates.scorer / rates.plain:.2f}")
    table.add_row("ratio to the sorted one", f"{rates.scorer / rates.ordered:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
