from __future__ import annotations

from pathlib import Path

import pytest

from services.buffer.api_intake import data_file, split_of
from services.buffer.problems import Problem
from tba_common.tasks import PromptSpec


def test_the_split_of_a_text_is_the_same_on_every_machine() -> None:
    held_out = [number for number in range(40) if split_of(PromptSpec(text=f"{number}+1="), 0.1) == "eval"]
    assert held_out == [9, 12, 30]


def test_about_the_asked_share_is_held_out() -> None:
    held_out = sum(split_of(PromptSpec(text=str(number)), 0.25) == "eval" for number in range(4_000))
    assert 900 < held_out < 1_100


def test_a_larger_share_holds_out_all_that_a_smaller_one_does() -> None:
    texts = [PromptSpec(text=str(number)) for number in range(300)]
    few = {spec.text for spec in texts if split_of(spec, 0.1) == "eval"}
    many = {spec.text for spec in texts if split_of(spec, 0.3) == "eval"}
    assert few < many


def test_nothing_is_held_out_unless_asked_and_eval_prompts_stay_held_out() -> None:
    assert split_of(PromptSpec(text="1"), 0.0) == "train"
    assert split_of(PromptSpec(text="1", split="eval"), 0.0) == "eval"


def test_a_file_beneath_the_data_directory_is_found(tmp_path: Path) -> None:
    file = tmp_path / "sets" / "a.jsonl"
    file.parent.mkdir()
    file.touch()
    assert data_file(tmp_path, "sets/a.jsonl") == file.resolve()


@pytest.mark.parametrize(
    "named",
    ["../secret.jsonl", "link.jsonl", "/etc/passwd", "missing.jsonl", "notes.txt", ".", "a" * 300 + ".jsonl"],
)
def test_every_other_path_gets_one_and_the_same_answer(tmp_path: Path, named: str) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    (tmp_path / "secret.jsonl").touch()
    (directory / "notes.txt").touch()
    (directory / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(Problem) as refusal:
        data_file(directory, named)
    assert refusal.value.errors[0].field == "/prompts_path"
    assert refusal.value.errors[0].expected == "a .jsonl file beneath the data directory"


def test_without_a_data_directory_no_path_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(Problem) as refusal:
        data_file(None, str(tmp_path / "a.jsonl"))
    assert refusal.value.errors[0].expected == "prompts inline: no data directory is set here"
