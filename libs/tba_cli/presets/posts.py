"""A world of short posts and what people write under their TL;DR, some with more care than others. Pure.

What a good summary is stands in `worth`, and no model ever sees it: it only decides, with noise, which of two summaries
a reader prefers. From such choices the reward models must find out.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

_VALUES: Final = {
    "name": "Ada Ben Cleo Dan Eve Finn Gus Hana Ivan Jill Kai Lena Max Nora Omar Pia Ravi Sara Tom Uma",
    "town": "Oslo Rome Lima Kyiv Bonn Cork Bern Porto Riga Turin",
    "day": "Monday Tuesday Friday Sunday",
    "weather": "sunny rainy windy foggy",
    "actor": "cat dog parrot brother neighbour boss uncle roommate",
    "deed": "broke ate lost sold hid painted burned borrowed",
    "thing": "bike cake laptop sofa guitar kettle diary phone tent lamp",
    "feeling": "sad angry amused confused proud worried",
}
VALUES: Final = {fact: values.split() for fact, values in _VALUES.items()}
FORMAT: Final = (
    "{name} writes from {town} : on {day} it was {weather} , "
    "my {actor} {deed} my {thing} and I feel {feeling} . TL;DR: "
)
MATTERS: Final = ("name", "actor", "deed", "thing", "feeling")
ASIDES: Final = ("town", "day", "weather")
FILLERS: Final = ("well", "so", "basically", "anyway")
_SHARPNESS: Final = 2.0  # how sure a reader is of a difference of one point


@dataclass(frozen=True, slots=True)
class Post:
    """What happened, fact by fact."""

    facts: dict[str, str]

    @property
    def text(self) -> str:
        """The post as the policy reads it, up to where its summary begins."""
        return FORMAT.format(**self.facts)


def new_post(random_: random.Random) -> Post:
    """Something happens to somebody."""
    return Post({fact: random_.choice(values) for fact, values in VALUES.items()})


def summary(post: Post, care: float, random_: random.Random) -> str:
    """What a writer makes of a post: with a care of 1 right, whole and short, with 0 rambling and often wrong."""

    def told(fact: str) -> str:
        return post.facts[fact] if random_.random() < 0.6 + 0.4 * care else random_.choice(VALUES[fact])

    def rambling() -> list[str]:
        words = []
        while random_.random() < 0.45 * (1 - care):
            words.append(random_.choice(FILLERS))
        return words

    def perhaps(chance: float, *words: str) -> tuple[str, ...]:
        return words if random_.random() < chance else ()

    careless = 0.35 * (1 - care)
    words = [
        *rambling(),
        *perhaps(careless, "on", told("day")),
        *perhaps(careless, "in", told("town")),
        *("the", told("actor"), "of", told("name"), told("deed"), "the", told("thing")),
        *rambling(),
        *perhaps(careless, "it", "was", told("weather")),
        *perhaps(0.4 + 0.6 * care, "and", told("name"), "is", told("feeling")),
        *rambling(),
    ]
    return " ".join([*words, "."])


def worth(post: Post, text: str) -> float:
    """How good a summary is: what matters and is right, less what is wrong, beside the point, or mere filler."""
    words = text.split()
    points = 0.0
    for fact in MATTERS:
        told = [word for word in words if word in VALUES[fact]]
        points += (post.facts[fact] in told) - sum(word != post.facts[fact] for word in told)
    beside = sum(word in FILLERS or any(word in VALUES[fact] for fact in ASIDES) for word in words)
    return points - 0.5 * beside


def prefers_first(post: Post, first: str, second: str, random_: random.Random) -> bool:
    """Which of two summaries a reader likes better: the better one, mostly (Bradley and Terry, 1952)."""
    difference = worth(post, first) - worth(post, second)
    return random_.random() < 1 / (1 + math.exp(-_SHARPNESS * difference))


def words() -> str:
    """Every word of this world."""
    frames = FORMAT.format(**dict.fromkeys(VALUES, " ")), "on in the of it was and is ."
    return " ".join([*frames, *FILLERS, *_VALUES.values()])
