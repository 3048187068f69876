"""`tba tasks import`: a data set becomes a task of the live run, in one command."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tba_cli.options import DEFAULT_URL, ApiKey, Format, Match, Output, Url

if TYPE_CHECKING:
    from tba_cli.import_plan import Request

_AT_ONCE: Final = 500  # prompts in a request: often enough to see it move


class RecipeName(StrEnum):
    """Data sets that are known by name."""

    gsm8k = "gsm8k"


Source = Annotated[
    str, typer.Argument(help="A JSONL file (- is stdin), a data set of the Hugging Face hub, or a recipe's name.")
]
Name = Annotated[str | None, typer.Option(show_default="the recipe's or --task's", help="The task's name.")]
KnownRecipe = Annotated[
    RecipeName | None, typer.Option("--recipe", help="Columns, rule and prompt of a known data set.")
]
TaskFile = Annotated[
    Path | None, typer.Option("--task", exists=True, dir_okay=False, help="A JSON task, without its prompts.")
]
Config = Annotated[str | None, typer.Option(help="Configuration of a data set of the hub.")]
Split = Annotated[str | None, typer.Option(help="Split of a data set of the hub.")]
HeldOut = Annotated[
    str | None, typer.Option("--eval", help="What to hold out: another file, or another split of the data set.")
]
Text = Annotated[str | None, typer.Option(help="Column that has the problem.", show_default="text")]
Reference = Annotated[str | None, typer.Option(help="Column that has the right answer.", show_default="reference")]
Key = Annotated[str | None, typer.Option(help="Column that has the row's own id.", show_default="a digest of the row")]
Metadata = Annotated[list[str] | None, typer.Option(help="Column kept with the prompt; may be repeated.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Take the first so many rows.")]
EvalLimit = Annotated[int | None, typer.Option(min=1, help="Hold out the first so many rows of --eval.")]
Template = Annotated[str | None, typer.Option(help="What the policy reads, with {text} once.")]
FewShot = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="File of solved examples, put before the template.")
]
Chat = Annotated[bool, typer.Option("--chat", help="Wrap each prompt in the policy's chat template.")]
System = Annotated[str | None, typer.Option(help="System message, with --chat.")]
Rule = Annotated[Match | None, typer.Option("--match", show_default="exact", help="When an answer is right.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the task, such as sampling.completions=8."),
]


def import_rows(
    source: Source,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    output: Output = Format.table,
    name: Name = None,
    recipe: KnownRecipe = None,
    task: TaskFile = None,
    config: Config = None,
    split: Split = None,
    held_out: HeldOut = None,
    text: Text = None,
    reference: Reference = None,
    key: Key = None,
    metadata: Metadata = None,
    limit: Limit = None,
    eval_limit: EvalLimit = None,
    template: Template = None,
    few_shot: FewShot = None,
    chat: Chat = False,
    system: System = None,
    match: Rule = None,
    settings: Settings = None,
) -> None:
    """Import a data set as a task: every row a prompt, under any column names.

    Nothing is posted while a row is no prompt. Options go before --task, and --task before the recipe. Importing
    again adds only what is new.
    """
    from tba_cli.import_plan import Request

    fields = {
        "name": name,
        "template": template,
        "prompt_format": "chat" if chat else None,
        "system": system,
        "reward": [{"scorer": "verifier", "options": {"match": match.value}}] if match else None,
    }
    request = Request(
        source=source,
        recipe=recipe.value if recipe else None,
        task_file=task,
        config=config,
        split=split,
        held_out=held_out,
        text=text,
        reference=reference,
        key=key,
        metadata=metadata or (),
        limit=limit,
        eval_limit=eval_limit,
        few_shot=few_shot,
        fields=fields,
        settings=settings or (),
    )
    _import(request, url, api_key, as_json=output is Format.json)


def _import(request: Request, url: str, api_key: str | None, *, as_json: bool) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from tba_cli import importing, show
    from tba_cli.client import Client
    from tba_cli.import_plan import plan_of

    plan = plan_of(request)
    # On stderr, so that `-o json` stays JSON; a pipe gets no bar.
    with Client(url, api_key) as client, Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task(plan.task.name, total=len(plan.prompts))
        created = importing.post(
            client,
            plan.task,
            plan.prompts,
            at_once=_AT_ONCE,
            progress=lambda posted: bar.update(line, completed=posted),
        )
        posted = client.task(plan.task.name)
    left_out = f", {plan.repeated:,} rows left out as repetitions" if plan.repeated else ""
    page = f"{created:,} of {len(plan.prompts):,} prompts are new in {plan.task.name}{left_out}"
    show.answer(posted, page, as_json=as_json)
