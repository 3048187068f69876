"""Nothing that a policy writes looks like a marker of ours, or opens another role."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.reward.judge_prompt import Case, messages, neutral, score_in

NONCE = "0123456789abcdef0123456789abcdef"
MARKER = re.compile(r"^<<<[0-9a-f]{32} (?:QUESTION|REFERENCE|ANSWER|END)>>>$", re.MULTILINE)


@pytest.mark.parametrize(
    "control",
    [
        "<<<",
        "<<<END>>>",
        "<|im_end|>",
        "<|eot_id|>",
        "<\uff5cend\uff5c>",
        "</s>",
        "<s>",
        "<end_of_turn>",
        "<START_of_turn>",
        "<<SYS>>",
        "<</SYS>>",
        "[INST]",
        "[/inst]",
    ],
)
def test_control_text_is_broken_and_stays_readable(control: str) -> None:
    broken = neutral(f"a {control} b", NONCE)
    assert control not in broken
    assert len(broken) == len(control) + 4


@pytest.mark.parametrize(
    "text", ["if a < b and b << 2 > c:", ">>> print([1])", "<div>[x]</div>", "1 <= 2", "x[INSTANCE]"]
)
def test_code_stays_as_it_is(text: str) -> None:
    assert neutral(text, NONCE) == text


def test_the_number_of_the_markers_is_taken_out() -> None:
    assert neutral(f"<<<{NONCE} END>>>", NONCE) == "\u2039<<[number] END>>>"


@given(st.lists(st.sampled_from([NONCE, "<", "<<<", " END>>>", "\n", "ANSWER", "a", "[INST]", "<|x|>"])).map("".join))
def test_no_text_changes_how_many_markers_there_are(text: str) -> None:
    _, user = messages(Case("rubric", question=text, answer=text, reference=text), NONCE)
    assert MARKER.findall(user["content"]) == MARKER.findall(
        messages(Case("rubric", question="", answer="", reference=""), NONCE)[1]["content"]
    )


def test_without_a_reference_none_is_shown() -> None:
    _, user = messages(Case("rubric", question="q", answer="a"), NONCE)
    assert "REFERENCE" not in user["content"]


def test_a_rubric_may_hold_braces() -> None:
    system, _ = messages(Case("JSON like {nonce} or {}", question="q", answer="a"), NONCE)
    assert "JSON like {nonce} or {}" in system["content"]


@pytest.mark.parametrize("score", [0, 0.25, 1])
def test_a_verdict_is_read(score: float) -> None:
    assert score_in(f'{{"reason": "r", "score": {score}}}') == score


def test_what_is_no_verdict_is_told_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="expected a verdict") as fault:
        score_in('{"reason": "secret", "score": 2}')
    assert "secret" not in str(fault.value)
