from __future__ import annotations

import json
from typing import Any

import pytest

from services.buffer.api_body import RawBody, Reader
from services.buffer.api_faults import FieldError
from services.buffer.api_tasks import TaskBody
from services.buffer.problems import Problem
from tba_common.tasks import PromptSpec

READER = Reader(TaskBody)
GOOD: dict[str, Any] = {
    "name": "addition",
    "reward": [{"scorer": "verifier", "options": {"match": "exact"}}],
    "prompts": [{"text": "1+1=", "reference": "2"}],
}


def refusal(content: bytes, media_type: str | None = "application/json") -> Problem:
    with pytest.raises(Problem) as caught:
        READER.json(RawBody(content, media_type))
    return caught.value


def only_fault(change: dict[str, Any]) -> tuple[str, str, str]:
    problem = refusal(json.dumps(GOOD | change).encode())
    assert problem.status_code == 422
    (fault,) = problem.errors
    return fault.field, fault.expected, fault.got


def test_a_task_that_fits_is_read() -> None:
    body = READER.json(RawBody(json.dumps(GOOD).encode(), "application/json"))
    assert body.name == "addition"
    assert body.prompts == (PromptSpec(text="1+1=", reference="2"),)


@pytest.mark.parametrize(
    ("change", "field", "expected", "got"),
    [
        ({"name": 5}, "/name", "a valid string", "5"),
        ({"name": "Näme"}, "/name", "match pattern '^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$'", '"N\\u00e4me"'),
        ({"family": "chess"}, "/family", "'math', 'preference' or 'redteam'", '"chess"'),
        ({"reward": []}, "/reward", "at least 1 item", "[]"),
        ({"reward": [{"scorer": "verifier", "weight": "1"}]}, "/reward/0/weight", "a valid number", '"1"'),
        ({"sampling": {"completions": "16"}}, "/sampling/completions", "a valid integer", '"16"'),
        ({"sampling": {"completions": True}}, "/sampling/completions", "a valid integer", "true"),
        ({"sampling": {"top_p": 1.5}}, "/sampling/top_p", "less than or equal to 1", "1.5"),
        ({"prompts": []}, "/prompts", "at least 1 item", "[]"),
        ({"prompts": [{"text": ""}]}, "/prompts/0/text", "at least 1 character", '""'),
        ({"prompts": [{"reference": "2"}]}, "/prompts/0/text", "a value", "nothing"),
        ({"prompts": [{"text": "a\0"}]}, "/prompts/0/text", "text without the character U+0000", '"a\\u0000"'),
        (
            {"prompts": [{"text": "a", "metadata": {"a/b": [2**70]}}]},
            "/prompts/0/metadata/a~1b/0",
            "an integer below 2^63",
            "a larger one",
        ),
    ],
)
def test_a_fault_is_told_by_field_with_what_was_expected_and_what_came(
    change: dict[str, Any], field: str, expected: str, got: str
) -> None:
    assert only_fault(change) == (field, expected, got)


def test_an_unknown_field_is_refused_with_the_fields_that_are_known() -> None:
    field, expected, got = only_fault({"sampling": {"temprature": 1}})
    assert (field, got) == ("/sampling/temprature", "1")
    assert expected == (
        "no field of this name; known fields: completions, temperature, top_p, max_new_tokens, exploration"
    )


def test_a_law_between_fields_is_told_in_its_own_words() -> None:
    _, expected, _ = only_fault({"sampling": {"temperature": 0}})
    assert expected == "temperature expected above 0 to train, got 0; evaluation is greedy by itself"


def test_every_fault_of_a_body_is_told_at_once() -> None:
    problem = refusal(json.dumps(GOOD | {"name": 5, "family": "chess", "sampling": {"top_p": 2}}).encode())
    assert [fault.field for fault in problem.errors] == ["/name", "/family", "/sampling/top_p"]


def test_what_came_is_cut_short_and_kept_in_ascii() -> None:
    _, _, got = only_fault({"family": "\u202e\n" + "x" * 5_000})
    assert got.isascii()
    assert "\n" not in got
    assert len(got) < 150


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"name": NaN}', b"[Infinity]", b'"\xff"', b'"\\ud800"', b"[" * 10_000, b"{} {}"],
    ids=["empty", "cut off", "NaN", "Infinity", "not UTF-8", "lone surrogate", "too deep", "two documents"],
)
def test_what_is_not_json_is_refused_before_it_is_looked_into(content: bytes) -> None:
    problem = refusal(content)
    assert problem.status_code == 400
    assert problem.errors[0].field == ""
    assert problem.errors[0].expected == "one JSON document (RFC 8259) in UTF-8"


def test_a_number_too_large_for_a_float_is_refused_also_in_free_form_objects() -> None:
    content = json.dumps(GOOD).replace('"exact"', "1e999").encode()
    assert refusal(content).errors == (
        FieldError(field="/reward/0/options/match", expected="a finite number", got="Infinity"),
    )


@pytest.mark.parametrize("media_type", [None, "application/x-www-form-urlencoded", "text/json"])
def test_a_body_that_does_not_say_it_is_json_is_refused(media_type: str | None) -> None:
    problem = refusal(b"{}", media_type)
    assert problem.status_code == 415
    assert problem.errors[0].field == "header:Content-Type"
    assert problem.errors[0].expected == "application/json"
