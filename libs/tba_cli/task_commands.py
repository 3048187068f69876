"""Commands about tasks. Each imports what it needs when it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from tba_cli.errors import BadInput
from tba_cli.options import DEFAULT_URL, ApiKey, Format, Match, Output, Url

if TYPE_CHECKING:
    from tba_cli.answers import TaskAnswer
    from tba_cli.client import Client

File = Annotated[typer.FileBinaryRead, typer.Argument(help="JSONL, one prompt a line; - is stdin.")]
Name = Annotated[str, typer.Argument(help="The task's name.")]
TextField = Annotated[str, typer.Option(help="Field of a line that has the prompt.")]
ReferenceField = Annotated[str, typer.Option(help="Field of a line that has the right answer.")]


def post(
    file: File,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    output: Output = Format.table,
    name: Annotated[str | None, typer.Option(help="The task's name; a document has its own.")] = None,
    text_field: TextField = "text",
    reference_field: ReferenceField = "reference",
    match: Annotated[Match, typer.Option(help="When an answer is right.")] = Match.exact,
    chat: Annotated[bool, typer.Option(help="Wrap each prompt in the policy's chat template.")] = False,
    completions: Annotated[int | None, typer.Option(help="Completions sampled per prompt.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the policy that is sampled and trained.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest completion.")] = None,
    beta: Annotated[
        float | None, typer.Option(help="Pull towards the start policy; smaller lets it go further.")
    ] = None,
    eval_fraction: Annotated[float | None, typer.Option(help="Share of the prompts to hold out.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="Versions between evaluations.")] = None,
) -> None:
    """Post a task to the live run: JSONL of prompts, or one JSON document, the body of POST /v1/tasks.

    The options describe a task made of JSONL; a document says everything itself.
    """
    from tba_cli import posting, show
    from tba_cli.client import Client

    text = posting.text_of(file.read())
    with Client(url, api_key) as client:
        if (document := posting.document_of(text)) is not None:
            posted = client.post_document(document)
        elif name is None:
            raise BadInput("no --name: a task made of JSONL needs one")
        else:
            task = posting.task_of(
                name=name,
                reward=[{"scorer": "verifier", "options": {"match": match.value}}],
                prompt_format="chat" if chat else "text",
                sampling={"completions": completions, "temperature": temperature, "max_new_tokens": max_new_tokens},
                target={"beta": beta},
                eval_fraction=eval_fraction,
                evaluate_every_versions=evaluate_every,
            )
            fields = {"text_field": text_field, "reference_field": reference_field}
            posted = client.post_task(task, posting.prompts_of(text, **fields))
    show.answer(posted, show.tasks_table([posted]), as_json=output is Format.json)


def add(
    name: Name,
    file: File,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    output: Output = Format.table,
    text_field: TextField = "text",
    reference_field: ReferenceField = "reference",
) -> None:
    """Add prompts to a task."""
    from tba_cli import posting, show
    from tba_cli.client import Client

    text = posting.text_of(file.read())
    prompts = posting.prompts_of(text, text_field=text_field, reference_field=reference_field)
    with Client(url, api_key) as client:
        posted = client.add_prompts(name, prompts)
    created = sum(prompt.created for prompt in posted)
    show.answer(posted, f"{created} of {len(posted)} prompts are new in {name}", as_json=output is Format.json)


def seed(
    name: Name,
    file: Annotated[typer.FileBinaryRead, typer.Argument(help="JSONL, one known answer a line; - is stdin.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    answer_field: Annotated[str, typer.Option(help="Field of a line that has the answer.")] = "answer",
    prompt_field: Annotated[
        str, typer.Option(help="Field that has the prompt's text; not needed where the task has one prompt.")
    ] = "prompt",
) -> None:
    """Give known answers to prompts of a task: they are scored and learnt from like the policy's own."""
    from tba_cli import posting
    from tba_cli.client import Client
    from tba_cli.request_calls import seed_task

    answers = posting.seeds_of(posting.text_of(file.read()), answer_field=answer_field, prompt_field=prompt_field)
    with Client(url, api_key) as client:
        accepted = seed_task(client, name, answers)
    typer.echo(f"{accepted} answers are scored and stored in {name}")


def list_all(url: Url = DEFAULT_URL, api_key: ApiKey = None, output: Output = Format.table) -> None:
    """List the tasks with their progress."""
    from tba_cli import show
    from tba_cli.client import Client

    with Client(url, api_key) as client:
        found = client.tasks()
    show.answer(found, show.tasks_table(found), as_json=output is Format.json)


def pause(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None, output: Output = Format.table) -> None:
    """Order no more completions for a task; what is in flight still arrives."""
    _steer(lambda client: client.pause(name), url, api_key, output)


def resume(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None, output: Output = Format.table) -> None:
    """Go on with a paused task."""
    _steer(lambda client: client.resume(name), url, api_key, output)


def delete(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Take a task out of the run for good."""
    from tba_cli.client import Client

    with Client(url, api_key) as client:
        client.delete(name)


def evaluate(
    name: Name,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    output: Output = Format.table,
    policy_version: Annotated[int | None, typer.Option(help="Which version; the newest by default.")] = None,
) -> None:
    """Ask for the held-out prompts to be answered by one policy version."""
    from tba_cli import show
    from tba_cli.client import Client

    with Client(url, api_key) as client:
        asked = client.evaluate(name, policy_version)
    page = f"{asked.prompts} held-out prompts of {asked.task} are evaluated with version {asked.policy_version}"
    show.answer(asked, page, as_json=output is Format.json)


def _steer(change: Callable[[Client], TaskAnswer], url: str, api_key: str | None, output: Format) -> None:
    from tba_cli import show
    from tba_cli.client import Client

    with Client(url, api_key) as client:
        task = change(client)
    show.answer(task, show.tasks_table([task]), as_json=output is Format.json)
