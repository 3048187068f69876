"""Preference pairs: what is no pair says which line and field, and no prompt is on both sides of the split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.reward.preference_pairs import Pair, read_pairs, split_pairs

GOOD = '{"prompt": "p", "chosen": "a", "rejected": "b", "source": 7}'


def test_each_line_is_a_pair(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{GOOD}\n{GOOD}\n")
    assert read_pairs(path) == [Pair(f"{path}:{line}", "p", "a", "b") for line in (1, 2)]


def test_a_line_ends_where_jsonl_says_so(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    pair = {"prompt": "one\u2028paragraph", "chosen": "a\x85", "rejected": "b"}
    path.write_text(json.dumps(pair, ensure_ascii=False) + "\r\n", "utf-8")
    assert read_pairs(path) == [Pair(f"{path}:1", "one\u2028paragraph", "a\x85", "b")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", ":2: expected a JSON object, got ''"),
        ("[1]", ":2: expected a JSON object, got list"),
        ('{"prompt": "p", "chosen": "a"}', ":2: rejected: expected a string, got no such field"),
        ('{"prompt": "p", "chosen": 3, "rejected": "b"}', ":2: chosen: expected a string, got int"),
        ('{"prompt": "p", "chosen": "a", "rejected": "a"}', ":2: rejected: expected another answer than chosen"),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(ValueError, match=message):
        read_pairs(path)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=8, max_size=40), st.integers(0, 9))
def test_no_prompt_is_both_trained_and_measured_on(prompts: list[str], seed: int) -> None:
    pairs = [Pair(json.dumps(i), prompt, "x", "y") for i, prompt in enumerate([*prompts, "z", "a"])]
    train, held_out = split_pairs(pairs, 0.4, seed)
    assert sorted([*train, *held_out]) == sorted(pairs)
    assert {pair.prompt for pair in train}.isdisjoint({pair.prompt for pair in held_out})
    assert split_pairs(pairs, 0.4, seed) == (train, held_out)


def test_a_side_without_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="expected pairs to train on and pairs to hold out, got 1 and 0"):
        split_pairs([Pair("here", "p", "a", "b")], 0.1, 0)
