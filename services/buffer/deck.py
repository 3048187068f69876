"""A deck of prompts, dealt without replacement: step 7 of the sampling law (docs/sampling.md).

Every prompt carries the number of times it was dealt, and the next is the ready one with the least (count, hash).
So within an epoch the order is a uniform permutation, and two prompts that were ready throughout never differ by
more than one deal, except where a prompt was passed over because the other deck had put it into the same batch.
A prompt that enters late starts level with the others: it gets no burst to catch up.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from hashlib import blake2b


class Deck:
    """The prompts of one kind of draw.

    Args:
        name: part of the hash, so that two decks of one run are dealt in unrelated orders.
        seed: of the run.
        dealt: counts to go on from after a restart.
        floor: the level below which nobody entered before the restart.
    """

    def __init__(self, name: str, seed: int, dealt: Mapping[int, int] | None = None, floor: int = 0) -> None:
        self._key = blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
        self._dealt = dict(dealt or {})
        self._members: set[int] = set()
        self._heap: list[tuple[int, int, int]] = []  # (count, hash, prompt); stale entries are skipped when met
        self._resumes = True  # the first prompts to enter were there before the restart
        self.floor = floor

    def count(self, prompt_id: int) -> int:
        """Return how often a prompt counts as dealt (c_x)."""
        return self._dealt.get(prompt_id, 0)

    def level(self) -> int:
        """Return the count at which a prompt would enter now: the `floor` of a restart."""
        return max(self.floor, self._least()) if self._members else self.floor

    def update(self, ready: Collection[int], touched: Collection[int] | None = None) -> None:
        """Make the deck hold exactly the ready prompts, of which only the `touched` may have come or gone.

        Those who enter start at the least count of those who stayed; after a complete turnover all start level.
        """
        self.floor = self.level()  # before anybody leaves: who enters an empty deck starts no lower than they were
        touched = self._members.union(ready) if touched is None else touched
        self._members.difference_update([x for x in touched if x in self._members and x not in ready])
        entering = [x for x in touched if x in ready and x not in self._members]
        if not entering:
            return
        if self._members or self._resumes:
            self.floor = self.level()
        else:
            self.floor = max(self.floor, *map(self.count, entering))
        self._resumes = False
        self._members.update(entering)
        for prompt_id in entering:
            self._dealt[prompt_id] = max(self.count(prompt_id), self.floor)
            heapq.heappush(self._heap, self._entry(prompt_id))
        if len(self._heap) > 2 * len(self._members) + 64:
            self._heap = [self._entry(prompt_id) for prompt_id in self._members]
            heapq.heapify(self._heap)

    def _least(self) -> int:
        """The least count of a member; every member has its entry, so it is on top once stale ones are gone."""
        while not self._is_valid(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0]

    def _is_valid(self, entry: tuple[int, int, int]) -> bool:
        count, _, prompt_id = entry
        return prompt_id in self._members and count == self._dealt[prompt_id]

    def deal(self, taken: Collection[int]) -> int | None:
        """Take the next prompt that is not in `taken`, or None when every ready prompt is."""
        skipped = []
        dealt = None
        while self._heap and dealt is None:
            entry = heapq.heappop(self._heap)
            if not self._is_valid(entry):
                continue
            if entry[2] in taken:
                skipped.append(entry)
            else:
                dealt = entry[2]
        for entry in skipped:
            heapq.heappush(self._heap, entry)
        if dealt is not None:
            self._dealt[dealt] += 1
            heapq.heappush(self._heap, self._entry(dealt))
        return dealt

    def _entry(self, prompt_id: int) -> tuple[int, int, int]:
        count = self.count(prompt_id)
        digest = blake2b(b"%d/%d" % (count, prompt_id), digest_size=8, key=self._key).digest()
        return count, int.from_bytes(digest), prompt_id
