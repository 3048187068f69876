"""The payload cache never holds more than its bytes, and never an outdated payload."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.buffer.payload_cache import Payload, PayloadCache


def payload(size: int) -> Payload:
    return b"t" * size, b"l" * size


def test_what_was_put_is_found_and_brought_up_to_date() -> None:
    cache = PayloadCache(10_000)
    cache.put({1: (b"a", b"b")})
    cache.put({1: (b"a", b"c"), 2: (b"d", b"e")})
    assert cache.get([1, 2, 3]) == {1: (b"a", b"c"), 2: (b"d", b"e")}


def test_the_least_recently_used_leaves_first() -> None:
    cache = PayloadCache(3 * 500)
    cache.put({i: payload(100) for i in (1, 2, 3)})
    cache.get([1])
    cache.put({4: payload(100)})
    assert set(cache.get([1, 2, 3, 4])) == {1, 3, 4}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 900)), max_size=40))
def test_it_never_holds_more_bytes_than_allowed_and_knows_how_many_it_holds(puts: list[tuple[int, int]]) -> None:
    cache = PayloadCache(4_000)
    for trajectory_id, size in puts:
        cache.put({trajectory_id: payload(size)})
        held = cache.get(range(10))
        assert cache.bytes == sum(len(tokens) + len(logprobs) + 300 for tokens, logprobs in held.values()) <= 4_000
