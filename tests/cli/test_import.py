"""`tba tasks import`: rows become prompts, faults are told by line and field, and nothing is added twice."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tba_cli import dataset_rows
from tba_cli.client import Client
from tba_cli.dataset_rows import Row, rows_of
from tba_cli.errors import BadInput, TbaError
from tba_cli.import_plan import Plan, Request, plan_of
from tba_cli.importing import post, prompts_of, without_repetitions
from tba_cli.recipes import RECIPES, Columns
from tba_common.tasks import PromptSpec, Task
from tests.cli.fake_api import TASK, FakeApi, Reply, listing, problem

GSM8K_ROW = {"question": "How many is 2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def gsm8k(tmp_path: Path) -> str:
    """A local file as GSM8K has them."""
    return jsonl(tmp_path / "train.jsonl", GSM8K_ROW, {"question": "How many is 3 * 5?", "answer": "#### 15"})


def plan(source: str, **options: Any) -> Plan:
    return plan_of(Request(source=source, **options))


def test_gsm8k_from_a_local_file_has_the_papers_prompt_and_the_rule_of_the_last_number(gsm8k: str) -> None:
    found = plan(gsm8k, recipe="gsm8k")
    assert found.task.name == "gsm8k"
    assert found.task.template == "[MATH TASK] Problem:\n{text}\n\nSolution:\n"
    assert [term.options for term in found.task.reward] == [{"match": "last_number"}]
    assert found.prompts[0].text == "How many is 2 + 2?"
    assert found.prompts[0].reference == "2 + 2 = <<2+2=4>>4\n#### 4"


def test_a_recipe_by_its_name_alone_takes_its_data_set_and_holds_out_its_test_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def rows(source: str, *, config: str | None, split: str | None) -> Any:
        asked.append((source, config, split))
        return iter([Row(f"{split}, row 1", GSM8K_ROW | {"question": f"of {split}?"})])

    monkeypatch.setattr(dataset_rows, "rows_of", rows)
    found = plan("gsm8k")
    assert asked == [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")]
    assert [(prompt.text, prompt.split) for prompt in found.prompts] == [("of test?", "eval"), ("of train?", "train")]


def test_columns_are_mapped_by_their_names_and_a_number_may_be_a_text(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "rows.jsonl", {"id": 7, "problem": "1+1=", "solution": 2, "level": [1, "easy"]})
    names = {"text": "problem", "reference": "solution", "key": "id", "metadata": ["level"]}
    (prompt,) = plan(source, fields={"name": "sums"}, **names).prompts
    assert prompt == PromptSpec(text="1+1=", reference="2", key="7", metadata={"level": [1, "easy"]})


def test_rows_that_are_no_prompts_are_told_by_line_field_expected_and_got_and_nothing_is_planned(
    tmp_path: Path,
) -> None:
    rows = [{"question": "?", "answer": "1"}, {"question": ["a"], "answer": "1"}, {"text": "?"}, {"question": ""}]
    source = jsonl(tmp_path / "train.jsonl", *rows)
    with pytest.raises(BadInput) as refused:
        plan(source, recipe="gsm8k")
    counted, second, third, fourth = str(refused.value).splitlines()
    assert counted == "3 of 4 rows are no prompts; nothing was posted"
    assert second == "train.jsonl, line 2, field question: expected a text or a number, got ['a']"
    assert third == "train.jsonl, line 3, field question: expected among its fields, got text"
    assert fourth == "train.jsonl, line 4, field question: expected string should have at least 1 character, got ''"


def test_of_many_bad_rows_the_first_twenty_are_told() -> None:
    rows = [Row(f"line {number}", {"text": None}) for number in range(30)]
    with pytest.raises(BadInput, match=r"30 of 30 rows[\s\S]*line 19, [\s\S]*\.\.\. and 10 more$"):
        prompts_of(rows, Columns(), "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": ', "rows.jsonl, line 1: expected a JSON object, got "),
        (b'\n{"text": "a"}\n[1]\n', "rows.jsonl, line 3: expected a JSON object, got list"),
        (b'{"text": "\xff"}', "rows.jsonl, line 1: expected UTF-8, got byte 0xff at 10"),
        (b"", "expected at least one row, got none"),
    ],
)
def test_a_file_that_is_no_jsonl_is_refused_with_the_place(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(BadInput) as refused:
        plan(str(tmp_path / "rows.jsonl"), fields={"name": "a"})
    assert message in str(refused.value)


def test_stdin_is_read_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a"}\n')))
    assert [row.place for row in rows_of("-")] == ["stdin, line 1"]


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(BadInput, match=r"no/such/file.jsonl: expected a JSONL file .* got no such file"):
        rows_of("no/such/file.jsonl")


def test_a_data_set_of_the_hub_needs_a_split_and_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="expected --split"):
        rows_of("openai/gsm8k")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TbaError, match=r"pip install 'tba\[datasets\]'"):
        rows_of("openai/gsm8k", split="train")


def test_a_few_shot_prefix_stands_before_the_template(gsm8k: str, tmp_path: Path) -> None:
    (tmp_path / "shots.txt").write_text("Problem: 1+1\nSolution: 2\n\n")
    found = plan(gsm8k, recipe="gsm8k", few_shot=tmp_path / "shots.txt").task
    assert found.template == "Problem: 1+1\nSolution: 2\n\n[MATH TASK] Problem:\n{text}\n\nSolution:\n"


def test_options_go_before_the_task_document_and_that_before_the_recipe(gsm8k: str, tmp_path: Path) -> None:
    document = tmp_path / "task.json"
    document.write_text('{"name": "mine", "target": {"beta": 0.004}, "sampling": {"completions": 24}}')
    found = plan(gsm8k, recipe="gsm8k", task_file=document, settings=["sampling.completions=8", "prompt_format=chat"])
    assert (found.task.name, found.task.target.beta, found.task.prompt_format) == ("mine", 0.004, "chat")
    assert (found.task.sampling.completions, found.task.sampling.max_new_tokens) == (8, 512)


@pytest.mark.parametrize("said", ["completions", "=8"])
def test_a_setting_without_a_field_or_a_value_is_refused(gsm8k: str, said: str) -> None:
    with pytest.raises(BadInput, match="--set: expected FIELD=VALUE"):
        plan(gsm8k, recipe="gsm8k", settings=[said])


def test_an_unknown_field_of_a_task_is_refused_by_its_name(gsm8k: str) -> None:
    with pytest.raises(BadInput, match=r"sampling\.completion"):
        plan(gsm8k, recipe="gsm8k", settings=["sampling.completion=8"])


def test_a_task_needs_a_name(gsm8k: str) -> None:
    with pytest.raises(BadInput, match="no --name"):
        plan(gsm8k)


def test_limits_take_the_first_rows_of_each_split(gsm8k: str, tmp_path: Path) -> None:
    test = jsonl(tmp_path / "test.jsonl", *({"question": f"{i}?", "answer": str(i)} for i in range(5)))
    found = plan(gsm8k, recipe="gsm8k", limit=1, held_out=test, eval_limit=3).prompts
    assert [prompt.text for prompt in found] == ["0?", "1?", "2?", "How many is 2 + 2?"]
    assert [prompt.split for prompt in found] == ["eval"] * 3 + ["train"]


def test_a_text_that_is_held_out_is_not_trained_on_and_a_row_that_comes_twice_is_taken_once() -> None:
    def prompts(split: Any, *texts: str) -> list[PromptSpec]:
        return prompts_of([Row("a row", {"text": text}) for text in texts], Columns(), split)

    found = without_repetitions(prompts("train", "a", "b", "b", "c"), prompts("eval", "c", "c"))
    assert [(prompt.text, prompt.split) for prompt in found] == [("c", "eval"), ("a", "train"), ("b", "train")]


def test_every_recipe_is_a_task() -> None:
    assert {Task.model_validate({"name": name, **recipe.task}).name for name, recipe in RECIPES.items()} == set(RECIPES)


NUMBERED = [PromptSpec(text=f"{i}", key=f"{i}") for i in range(5)]
SUMS = Task.model_validate(TASK["spec"])


def posted(*created: bool) -> Any:
    return listing(*({"prompt_id": i, "split": "train", "created": new} for i, new in enumerate(created)))


def test_prompts_are_posted_in_batches_with_progress(api: FakeApi) -> None:
    api.on("POST /v1/tasks", Reply(TASK, 201))
    api.on("POST /v1/tasks/addition/prompts", posted(True, True), posted(True))
    seen: list[int] = []
    with Client(api.url) as client:
        assert post(client, SUMS, NUMBERED, at_once=2, progress=seen.append) == 5
    assert seen == [2, 4, 5]
    assert [prompt["key"] for prompt in api.asked[0].body["prompts"]] == ["0", "1"]
    assert len({asked.headers["Idempotency-Key"] for asked in api.asked}) == 3


def test_an_import_that_was_broken_off_goes_on_and_adds_only_what_is_new(api: FakeApi) -> None:
    api.on("POST /v1/tasks", problem(409, code="task-exists"))
    api.on("GET /v1/tasks/addition", TASK)
    api.on("POST /v1/tasks/addition/prompts", posted(False, False), posted(False, True), posted(True))
    with Client(api.url) as client:
        assert post(client, SUMS, NUMBERED, at_once=2, progress=lambda posted: None) == 2


def test_another_task_of_the_same_name_is_left_alone(api: FakeApi) -> None:
    api.on("POST /v1/tasks", problem(409, code="task-exists"))
    api.on("GET /v1/tasks/addition", TASK)
    other = SUMS.model_copy(update={"eval_fraction": 0.5})
    with Client(api.url) as client, pytest.raises(BadInput, match=r"differs in eval_fraction: .* got 0\.5 .* has 0\.0"):
        post(client, other, NUMBERED, at_once=2, progress=lambda posted: None)


def test_the_command_says_how_many_prompts_are_new(
    api: FakeApi, gsm8k: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tba_cli import cli

    named = {**TASK, "name": "gsm8k"}
    api.on("POST /v1/tasks", Reply(named, 201))
    api.on("GET /v1/tasks/gsm8k", named)
    monkeypatch.setattr(sys, "argv", ["tba", "tasks", "import", gsm8k, "--recipe", "gsm8k", "--url", api.url])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == "2 of 2 prompts are new in gsm8k\n"
    assert len(api.asked[0].body["prompts"]) == 2
