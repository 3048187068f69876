"""`python -m services.learner run | tiny | import-gguf | supervised`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.learner.ranks import Ranks
    from services.learner.settings import LearnerSettings
    from services.learner.update import Updater


def main() -> None:
    """Parse the command and run it; torch is loaded after that."""
    arguments = _parser().parse_args()
    if arguments.command == "run":
        _run()
    elif arguments.command == "tiny":
        from services.learner.tiny import write_tiny

        text = arguments.words_of.read_text() if arguments.words_of else ""
        parameters = write_tiny(arguments.out, words_of=text, seed=arguments.seed)
        print(f"{arguments.out}: {parameters:,} parameters, untrained")  # noqa: T201
    elif arguments.command == "import-gguf":
        from services.learner.gguf_import import import_gguf

        parameters = import_gguf(arguments.file, arguments.out)
        print(f"{arguments.out}: {parameters:,} parameters, from {arguments.file.name}")  # noqa: T201
    else:
        from services.learner.supervised import train

        train(
            model=arguments.model,
            data=arguments.data,
            out=arguments.out,
            steps=arguments.steps,
            batch=arguments.batch,
            until_accuracy=arguments.until_accuracy,
            learning_rate=arguments.learning_rate,
            seed=arguments.seed,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.learner", description="Train the policy.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="the process tba-learner: train batches from the buffer; settings are TBA_<FIELD>")
    tiny = commands.add_parser("tiny", help="make an untrained tiny policy, one token a character or word")
    tiny.add_argument("--out", type=Path, required=True)
    tiny.add_argument("--words-of", type=Path, help="text file: its words are the tokens, and there are no others")
    tiny.add_argument("--seed", type=int, default=0)
    gguf = commands.add_parser("import-gguf", help="unpack a GGUF file into a Hugging Face folder of float32 weights")
    gguf.add_argument("--file", type=Path, required=True)
    gguf.add_argument("--out", type=Path, required=True)
    supervised = commands.add_parser("supervised", help="train a policy on text and reference pairs")
    supervised.add_argument("--model", required=True, help="Hugging Face folder or hub id")
    supervised.add_argument("--data", type=Path, required=True, help="JSONL with text and reference")
    supervised.add_argument("--out", type=Path, required=True)
    supervised.add_argument("--steps", type=int, default=400)
    supervised.add_argument("--batch", type=int, default=128)
    supervised.add_argument(
        "--until-accuracy", type=float, default=1.0, help="end early at this share of held-out pairs right, greedily"
    )
    supervised.add_argument("--learning-rate", type=float, default=1e-3)
    supervised.add_argument("--seed", type=int, default=0)
    return parser


def _run() -> None:
    from services.learner.settings import LearnerSettings

    settings = LearnerSettings.from_environment()  # before torch is imported: what is wrong is said at once
    from services.learner.ranks import Ranks

    ranks = Ranks.join()
    if ranks.leads:
        _lead(settings, ranks)
    else:
        _follow(settings, ranks)


def _lead(settings: LearnerSettings, ranks: Ranks) -> None:
    from tba_common.delivery import DeadLetters, may_outlive_the_broker
    from tba_common.kafka import Producer, Reader
    from tba_common.lifecycle import Lifecycle
    from tba_common.topics import BATCHES

    with Lifecycle("tba-learner", settings) as life:
        from services.learner.checkpoint import align
        from services.learner.loop import Learner

        updater = _updater(settings, ranks, life.beat)
        with may_outlive_the_broker(life.stop), ExitStack() as stack:
            producer = stack.enter_context(closing(Producer(settings.brokers, settings.run_id, stop=life.stop)))
            learner = Learner(settings, updater, producer, DeadLetters(producer, settings.run_id, "tba-learner"))
            align(updater)
            learner.start()
            reader = Reader(settings.brokers, settings.run_id, [BATCHES.name], learner.offsets)
            stack.enter_context(closing(reader))
            life.ready(True)
            while not life.stop.is_set() and not learner.finished:
                if not learner.step(reader):
                    ranks.call_roll()
                life.beat()
            learner.close()
        ranks.send_home()


def _follow(settings: LearnerSettings, ranks: Ranks) -> None:
    from services.learner.checkpoint import align

    updater = _updater(settings, ranks, lambda: None)
    align(updater)
    updater.follow()


def _updater(settings: LearnerSettings, ranks: Ranks, progress: Callable[[], None]) -> Updater:
    from services.learner.policy import Policy
    from services.learner.schedule import LearningRateSchedule
    from services.learner.update import Updater

    return Updater(
        Policy.load(
            settings.model,
            device=ranks.device(settings.device),
            lora_rank=settings.lora_rank,
            with_reference=settings.reference == "learner",
        ),
        learning_rate=settings.learning_rate,
        schedule=LearningRateSchedule.parse(settings.learning_rate_schedule),
        token_budget=settings.micro_batch_tokens,
        reset_reference_every=settings.reset_reference_every,
        ranks=ranks,
        progress=progress,
    )


if __name__ == "__main__":
    main()
