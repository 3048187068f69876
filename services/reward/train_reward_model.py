"""`python -m services.reward train-reward-model`: a reward model from a file of preference pairs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> None:
    """Train as the arguments say; the last line on stdout is the accuracy on pairs that were held out."""
    parser = argparse.ArgumentParser(prog="python -m services.reward train-reward-model", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help='JSONL, a line {"prompt": ..., "chosen": ..., "rejected": ...}'
    )
    parser.add_argument("--model", required=True, help="Hugging Face folder or hub id of a language or reward model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the reward model, in safetensors")
    parser.add_argument("--text-format", choices=["text", "chat"], default="text", help="as TBA_TEXT_FORMAT later")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=16, help="pairs a step")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--held-out", type=float, default=0.1, help="share of prompts to measure on")
    parser.add_argument("--max-tokens", type=int, default=1_024, help="a longer pair is an error")
    parser.add_argument("--seed", type=int, default=0)
    chosen = vars(parser.parse_args(arguments))
    paths = {name: chosen.pop(name) for name in ("data", "model", "out")}

    from services.reward.reward_model_training import Recipe, train

    try:
        outcome = train(**paths, recipe=Recipe(**chosen))
    except (OSError, ValueError) as error:
        sys.exit(f"train-reward-model: {error}")
    print(  # noqa: T201
        f"accuracy {outcome.accuracy:.3f}, loss {outcome.loss:.3f} on {outcome.held_out_pairs} held-out pairs; "
        f"trained on {outcome.pairs} pairs in {outcome.seconds:.0f} s; model in {paths['out']}"
    )
