"""Step 7 of the sampling law: prompts are dealt without replacement, evenly, in an order nobody can foresee."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.buffer.deck import Deck
from tests.buffer.laws import fits

NOBODY: frozenset[int] = frozenset()


def dealt(deck: Deck, count: int) -> list[int]:
    prompts = [deck.deal(NOBODY) for _ in range(count)]
    return [x for x in prompts if x is not None]


def test_an_epoch_deals_every_prompt_once() -> None:
    deck = Deck("offline", 1)
    deck.update(range(10))
    assert sorted(dealt(deck, 10)) == list(range(10))
    assert sorted(dealt(deck, 10)) == list(range(10))


@given(st.lists(st.sets(st.integers(0, 9)), max_size=20), st.integers(0, 7))
def test_prompts_ready_throughout_never_differ_by_more_than_one(turns: list[set[int]], per_turn: int) -> None:
    deck = Deck("offline", 3)
    always = {20, 21, 22}
    for ready in turns:
        deck.update(ready | always)
        dealt(deck, per_turn)
        counts = [deck.count(x) for x in always]
        assert max(counts) - min(counts) <= 1


def test_every_position_of_an_epoch_is_equally_likely() -> None:
    deck = Deck("offline", 5)
    deck.update(range(6))
    firsts = Counter(dealt(deck, 6)[0] for _ in range(6_000))
    assert fits(firsts, dict.fromkeys(range(6), 1 / 6))


def test_seeds_and_names_give_unrelated_orders() -> None:
    orders = set()
    for name, seed in (("online", 1), ("offline", 1), ("offline", 2)):
        deck = Deck(name, seed)
        deck.update(range(20))
        orders.add(tuple(dealt(deck, 20)))
    assert len(orders) == 3


def test_a_late_prompt_gets_no_burst() -> None:
    deck = Deck("offline", 2)
    deck.update(range(4))
    dealt(deck, 40)
    deck.update(range(5))
    assert Counter(dealt(deck, 10))[4] == 2


def test_a_prompt_that_returns_gets_no_burst() -> None:
    deck = Deck("offline", 2)
    deck.update(range(4))
    deck.update(range(3))
    dealt(deck, 30)
    deck.update(range(4))
    assert Counter(dealt(deck, 8)) == dict.fromkeys(range(4), 2)


def test_after_a_complete_turnover_everybody_starts_level() -> None:
    deck = Deck("online", 2)
    deck.update({1})
    dealt(deck, 9)
    deck.update(())
    deck.update({1, 2})
    assert Counter(dealt(deck, 4)) == {1: 2, 2: 2}


def test_what_is_taken_is_passed_over_and_keeps_its_turn() -> None:
    deck = Deck("offline", 2)
    deck.update(range(3))
    first = deck.deal(NOBODY)
    assert first is not None
    others = {deck.deal({first}), deck.deal({first})}
    assert others == set(range(3)) - {first}
    assert deck.deal(set(range(3))) is None


def test_a_restart_deals_on_where_it_was() -> None:
    deck, names = Deck("offline", 4), range(7)
    deck.update(names)
    dealt(deck, 10)
    again = Deck("offline", 4, {x: deck.count(x) for x in names}, deck.level())
    again.update(names)
    assert dealt(again, 11) == dealt(deck, 11)


def test_a_restart_knows_prompts_that_entered_late_and_were_never_dealt() -> None:
    deck = Deck("offline", 4)
    deck.update(range(3))
    dealt(deck, 15)
    deck.update(range(4))
    saved = {x: deck.count(x) for x in range(3)}  # 3 was not dealt, so its count was not saved
    again = Deck("offline", 4, saved, deck.level())
    again.update(range(4))
    assert again.count(3) == deck.count(3) == 5


def test_a_prompt_that_comes_with_a_restart_starts_level() -> None:
    deck = Deck("offline", 4)
    deck.update(range(3))
    dealt(deck, 15)
    again = Deck("offline", 4, {x: deck.count(x) for x in range(3)}, deck.level())
    again.update(range(4))
    assert [again.count(x) for x in range(4)] == [5, 5, 5, 5]


def test_who_enters_a_deck_that_everybody_left_starts_no_lower_than_they_were() -> None:
    deck = Deck("online", 4)
    deck.update({1, 2})
    dealt(deck, 10)
    deck.update({3, 4})
    dealt(deck, 2)
    deck.update({1, 3, 4})
    assert Counter(dealt(deck, 3)) == {1: 1, 3: 1, 4: 1}


def test_the_heap_does_not_grow_with_turnover() -> None:
    deck = Deck("online", 1)
    for turn in range(500):
        deck.update(range(turn % 2 * 10, turn % 2 * 10 + 10))
        dealt(deck, 1)
    assert len(deck._heap) < 100
