"""A text is right when it is JSON that a schema accepts; nothing is ever fetched for it."""

from __future__ import annotations

from typing import Any

import pytest

from services.reward.verifier_json import fits
from tba_common.codec import BadMessage

POINT: dict[str, Any] = {
    "type": "object",
    "properties": {"x": {"$ref": "#/$defs/number"}, "y": {"$ref": "#/$defs/number"}},
    "required": ["x"],
    "additionalProperties": False,
    "$defs": {"number": {"type": "number", "maximum": 9}},
}


@pytest.mark.parametrize("text", ['{"x": 1}', ' {"y": 2.5, "x": -1}\n'])
def test_json_of_the_schema_fits(text: str) -> None:
    assert fits(text, POINT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 1",
        '{"x": 10}',
        '{"x": 1, "z": 0}',
        '{"y": 1}',
        '{"x": NaN}',
        '{"x": 1} {"x": 1}',
        '```json\n{"x": 1}\n```',
        "[" * 100_000,
        '{"x": ' + "1" * 10_000 + "}",
    ],
)
def test_nothing_else_fits(text: str) -> None:
    assert not fits(text, POINT)


def test_a_schema_may_name_its_dialect() -> None:
    draft4 = {"$schema": "http://json-schema.org/draft-04/schema#", "maximum": 9, "exclusiveMaximum": True}
    assert fits("8", draft4)
    assert not fits("9", draft4)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "objct"}, "expected a JSON schema, got one that is wrong: 'objct' is not valid"),
        ({"$ref": "#/$defs/missing"}, "expected references into itself, got PointerToNowhere"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "expected references into itself, got Unresolvable: http://127"),
    ],
)
def test_a_schema_that_cannot_be_used_is_a_fault_of_the_task(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadMessage, match=reason.replace("$", r"\$")):
        fits("1", schema)
