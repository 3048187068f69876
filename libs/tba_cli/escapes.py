"""What a model wrote may hold commands for a terminal. Here they become visible characters."""

from __future__ import annotations

import re
from typing import Final

#: C0 and C1 controls but the tab, line separators, and the marks that turn the direction of text.
_UNSAFE: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Return the text on one line, with everything that a terminal would obey written out, such as `\\\\x1b`."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def visible_lines(text: str) -> str:
    """Return the visible text with its own line breaks kept."""
    return "\n".join(map(visible, text.split("\n")))


def shortened(text: str, characters: int) -> str:
    """Return the visible text, cut to a width."""
    whole = visible(text)
    return whole if len(whole) <= characters else f"{whole[: characters - 1]}…"
