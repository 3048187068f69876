"""No text of a model reaches a terminal as a command."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from tba_cli.escapes import shortened, visible


def test_an_escape_sequence_becomes_characters() -> None:
    assert visible("\x1b[31mred\x1b[0m\r\nnext\u202egnp") == r"\x1b[31mred\x1b[0m\r\nnext\u202egnp"


def test_ordinary_text_in_any_language_stays_as_it_is() -> None:
    text = "12+07=19\t¿Qué? 数学 — naïve 🙂"
    assert visible(text) == text


@given(st.text())
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    assert all(unicodedata.category(character) != "Cc" or character == "\t" for character in visible(text))


@given(st.text(), st.integers(min_value=1, max_value=20))
def test_a_shortened_text_fits(text: str, width: int) -> None:
    assert len(shortened(text, width)) <= width
