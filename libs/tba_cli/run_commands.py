"""Commands about the whole run: up, down, status, watch, demo. Each imports what it needs when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from tba_cli.errors import BadInput, TbaError
from tba_cli.options import DEFAULT_URL, ApiKey, Format, Output, Url, bounds

GeneratorPython = Annotated[
    str,
    typer.Option(
        show_default="this one",
        help="The Python that runs the generators; that of an environment with vLLM makes them run on it.",
    ),
]
_LOCAL: Final = Path("runs/local")
_DEMO_POLICY: Final = Path("runs/demo/policy")
_NO_MODEL: Final = """\
no --model: give a Hugging Face folder or id, or make a small policy first with one of
  tba demo                                           a trained one, in runs/demo/policy
  python -m services.learner tiny --out runs/tiny    an untrained one, in runs/tiny"""


def up(
    directory: Annotated[Path, typer.Option(help="Where this platform keeps everything.")] = _LOCAL,
    model: Annotated[
        str | None,
        typer.Option(
            show_default="the demo's policy, once there is one",
            help="The policy to start from: a Hugging Face folder or id.",
        ),
    ] = None,
    generators: Annotated[int, typer.Option(min=1, help="Processes that sample.")] = 2,
    autoscale: Annotated[
        str | None,
        typer.Option(metavar="MIN:MAX", show_default=False, help="As many of them as the learner needs, such as 1:4."),
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND[.INSTANCE]", show_default="verifier", help="A scorer to run; may be repeated."),
    ] = None,
    verifiers: Annotated[int, typer.Option(min=1, help="Processes of the scorer verifier.")] = 1,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="PROCESS:NAME=VALUE", help="A setting of one process; may be repeated."),
    ] = None,
    generator_python: GeneratorPython = sys.executable,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port of the API; 0 is any free one.")] = 8000,
    run_id: Annotated[str, typer.Option(help="Name of the run; another name starts anew.")] = "main",
    api_key: ApiKey = None,
) -> None:
    """Run the whole platform on this machine until Ctrl-C.

    Settings of the services, such as TBA_LEARNING_RATE or TBA_MAX_STEPS, are taken from the environment.
    """
    from rich.console import Console

    from tba_cli.local.stack import AlreadyRunning, StackOptions, StartError
    from tba_cli.up import up as run

    if model is None and not _DEMO_POLICY.exists():
        raise BadInput(_NO_MODEL)
    options = StackOptions(
        directory=directory,
        model=model or str(_DEMO_POLICY),
        run_id=run_id,
        api_port=port,
        generators=generators,
        autoscale=None if autoscale is None else bounds(autoscale),
        scorers=tuple(scorer or ("verifier",)),
        verifiers=verifiers,
        generator_python=generator_python,
        env=settings_by_process(env or ()),
    )
    try:
        asked_to_end = run(options, Console(highlight=False), api_key)
    except (AlreadyRunning, StartError) as error:
        raise TbaError(str(error)) from error
    if not asked_to_end:
        raise TbaError("the platform ended by itself: see its logs")


def settings_by_process(said: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read settings such as `tba-reward-reward_model.gold:TBA_MODEL=models/gold`.

    Raises:
        BadInput: one reads otherwise.
    """
    found: dict[str, dict[str, str]] = {}
    for one in said:
        process, _, setting = one.partition(":")
        name, equals, value = setting.partition("=")
        if not (process and name and equals):
            raise BadInput(f"--env: expected PROCESS:NAME=VALUE, got {one!r}")
        found.setdefault(process, {})[name] = value
    return found


def down(directory: Annotated[Path, typer.Option(help="The platform's directory.")] = _LOCAL) -> None:
    """End the platform of a directory, and whatever a killed one left."""
    from tba_cli.up import down as end

    ended = end(directory)
    typer.echo(f"ended {', '.join(ended)}" if ended else f"nothing runs in {directory}")


def status(url: Url = DEFAULT_URL, api_key: ApiKey = None, output: Output = Format.table) -> None:
    """Show the run at one glance."""
    from tba_cli import show
    from tba_cli.client import Client

    with Client(url, api_key) as client:
        found = client.status()
    show.answer(found, show.status_grid(found), as_json=output is Format.json)


def watch(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    output: Output = Format.table,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    until_step: Annotated[int | None, typer.Option(help="End when the run has reached this step.")] = None,
) -> None:
    """Follow the run: a live page on a terminal, one line a step elsewhere, JSON lines with -o json."""
    from rich.console import Console

    from tba_cli import watch as watching
    from tba_cli.client import Client

    console = Console(highlight=False)
    with Client(url, api_key, attempts=1) as client:
        looks = watching.looks(client, every_seconds=every, until_step=until_step)
        if output is Format.json:
            watching.write_json(looks)
        elif console.is_terminal:
            watching.show_live(looks, client, console)
        else:
            watching.print_lines(looks, console)


class PresetName(StrEnum):
    """What a demo can teach."""

    addition = "addition"
    math = "math"
    preference = "preference"
    redteam = "redteam"
    smollm2 = "smollm2"


def demo(
    preset: Annotated[
        PresetName,
        typer.Option(
            help="addition: two digits, with a tiny policy made here, in 8 minutes. math: the same with pass@k. "
            "preference: short summaries, under reward models made here. redteam: what makes a tiny chatbot swear. "
            "smollm2: one-digit products, with SmolLM2-135M-Instruct, in 25 minutes."
        ),
    ] = PresetName.addition,
    model: Annotated[
        str | None,
        typer.Option(show_default="the preset's", help="Another policy to start from: a Hugging Face folder or id."),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            show_default="runs/demo, or runs/demo-PRESET", help="Where the report and the policy go; emptied first."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, show_default="the preset's", help="Optimiser steps.")] = None,
    generators: Annotated[
        int | None, typer.Option(min=1, show_default="the preset's", help="Processes that sample.")
    ] = None,
    generator_python: GeneratorPython = sys.executable,
    seed: Annotated[int, typer.Option(help="Which problems are held out.")] = 0,
) -> None:
    """Teach a policy a task with the whole platform, before your eyes; writes a report."""
    from tba_cli.demo import DemoOptions, main
    from tba_cli.local.stack import AlreadyRunning, StartError
    from tba_cli.presets.preset import DemoError
    from tba_cli.signals import told_to_end

    options = DemoOptions(
        preset=preset.value,
        model=model,
        directory=directory,
        steps=steps,
        generators=generators,
        generator_python=generator_python,
        seed=seed,
    )
    try:
        main(options, told=told_to_end())
    except (AlreadyRunning, DemoError, StartError, TimeoutError) as error:
        raise TbaError(str(error)) from error
