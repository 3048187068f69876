"""Files become tasks; what cannot be posted is refused with its place."""

from __future__ import annotations

import pytest

from tba_cli.errors import BadInput
from tba_cli.posting import document_of, prompts_of, task_of, text_of
from tba_common.tasks import PromptSpec


def read(text: str, *, text_field: str = "text", reference_field: str = "reference") -> list[PromptSpec]:
    return prompts_of(text, text_field=text_field, reference_field=reference_field)


def test_a_data_set_is_read_under_its_own_field_names() -> None:
    line = '{"question": "How many?", "answer": "Four. #### 4", "source": "elsewhere"}'
    (prompt,) = read(line, text_field="question", reference_field="answer")
    assert prompt == PromptSpec(text="How many?", reference="Four. #### 4")


def test_key_split_and_metadata_of_a_line_are_kept() -> None:
    (prompt,) = read('{"text": "1+1=", "reference": "2", "key": "a", "split": "eval", "metadata": {"level": 1}}')
    assert (prompt.key, prompt.split, prompt.metadata) == ("a", "eval", {"level": 1})


def test_a_number_may_be_the_reference_and_empty_lines_are_passed_over() -> None:
    assert [prompt.reference for prompt in read('{"text": "a", "reference": 19}\n\n{"text": "b"}\n')] == ["19", None]


def test_a_line_separator_of_unicode_inside_a_text_does_not_end_the_line() -> None:
    (prompt,) = read('{"text": "one\u2028two"}')
    assert prompt.text == "one\u2028two"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a"}\n{"text": ', "line 2: expected a JSON object"),
        ('{"text": "a"}\n{"question": "b"}', "line 2: expected a field 'text', got question"),
        ("[1]", "line 1: expected a field 'text', got no object"),
        ('{"text": ""}', "line 1: text: .*at least 1 character"),
        ('{"text": "a", "split": "test"}', "line 1: split: .*'train' or 'eval'"),
        ("\n \n", "at least one line"),
    ],
)
def test_a_line_that_is_no_prompt_is_refused_with_its_number(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read(text)


def test_a_document_is_known_by_its_fields_and_jsonl_is_not_one() -> None:
    assert document_of('{\n "name": "a",\n "reward": [], "prompts": []\n}') is not None
    assert document_of('{"text": "a", "reference": "b"}') is None
    assert document_of('{"text": "a"}\n{"text": "b"}') is None


def test_options_that_are_not_given_leave_the_defaults() -> None:
    task = task_of(
        name="a", reward=[{"scorer": "verifier"}], sampling={"completions": 4, "temperature": None}, target={}
    )
    assert (task.sampling.completions, task.sampling.temperature) == (4, 1.0)
    assert "eval_fraction" not in task.model_fields_set


def test_an_option_that_no_task_can_have_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match="name"):
        task_of(name="Not A Name", reward=[{"scorer": "verifier"}])


def test_a_file_that_is_not_utf_8_is_refused_with_the_place() -> None:
    with pytest.raises(BadInput, match="0xff at 3"):
        text_of(b"abc\xff")
    assert text_of(b"\xef\xbb\xbfabc") == "abc"
