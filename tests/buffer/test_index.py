"""Steps 1 to 5 of the sampling law: what the index holds, against a model that keeps every row."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.buffer.index import Index, rows_of


@dataclass
class Model:
    """The law, word for word, over every row that ever came."""

    capacity: int
    fewest: int
    max_staleness: int
    version: int = -1
    rows: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)  # prompt: id: (version, id)

    def stored(self, prompt: int) -> list[tuple[int, int]]:
        return sorted(self.rows[prompt].values())[-self.capacity :]

    def eligible(self, prompt: int) -> list[tuple[int, int]]:
        return [row for row in self.stored(prompt) if self.version - row[0] <= self.max_staleness]

    def newest(self) -> int:
        return max((v for prompt in self.rows for v, _ in self.eligible(prompt)), default=-1)

    def online(self, prompt: int) -> list[tuple[int, int]]:
        return [row for row in self.eligible(prompt) if row[0] > self.newest() - 1]


Events = list[tuple[int, list[int]] | int]
ARRIVALS = st.tuples(st.integers(0, 3), st.lists(st.integers(0, 12), min_size=1, max_size=5))
EVENTS = st.lists(st.one_of(ARRIVALS, st.integers(0, 12)), max_size=25)


def differences(events: Events, model: Model, index: Index) -> list[str]:
    """Play events on both; an event is an arrival of versions for a prompt, or a new version of the learner."""
    index.activate(frozenset({1}))
    found, next_id = [], 0
    for event in events:
        if isinstance(event, int):
            model.version = max(model.version, event)
            index.advance(event)
        else:
            prompt, versions = event
            rows = [(version, next_id + i) for i, version in enumerate(versions)]
            next_id += len(rows)
            shelf = model.rows.setdefault(prompt, {})
            before = {i for _, i in model.stored(prompt)} if shelf else set()
            shelf.update({i: (v, i) for v, i in rows})
            gone = (before | {i for _, i in rows}) - {i for _, i in model.stored(prompt)}
            evicted = index.apply(prompt, 1, rows_of([(v, i, 0.0) for v, i in rows]))
            if set(evicted) != gone:
                found.append("evicted")
        found += compare(model, index)
    return found


def compare(model: Model, index: Index) -> list[str]:
    found = []
    for prompt in model.rows:
        for name, expected, got in (
            ("eligible", model.eligible(prompt), index.eligible(prompt)),
            ("online", model.online(prompt), index.online(prompt)),
        ):
            if expected != list(zip(got["version"].tolist(), got["trajectory_id"].tolist(), strict=True)):
                found.append(name)
    for name, sets, ready in (
        ("ready", model.eligible, index.ready),
        ("online_ready", model.online, index.online_ready),
    ):
        if {x for x in model.rows if len(sets(x)) >= model.fewest} != ready:
            found.append(name)
    if index.size != sum(len(model.stored(x)) for x in model.rows):
        found.append("size")
    if model.newest() != index.newest:
        found.append("newest")
    return found


@given(EVENTS, st.integers(2, 6), st.integers(1, 2), st.integers(0, 4))
def test_the_index_holds_what_the_law_says(events: Events, capacity: int, fewest: int, max_staleness: int) -> None:
    index = Index(capacity=capacity, fewest=fewest, max_staleness=max_staleness)
    assert differences(events, Model(capacity, fewest, max_staleness), index) == []


def test_an_off_by_one_staleness_cut_is_found() -> None:
    events: Events = [(0, [1, 2, 3]), 4]
    assert differences(events, Model(6, 1, 2), Index(capacity=6, fewest=1, max_staleness=3)) != []
    assert differences(events, Model(6, 1, 2), Index(capacity=6, fewest=1, max_staleness=2)) == []


def index_of(versions: list[int], *, capacity: int = 100, fewest: int = 2, max_staleness: int = 8) -> Index:
    index = Index(capacity=capacity, fewest=fewest, max_staleness=max_staleness)
    index.activate(frozenset({1}))
    index.apply(7, 1, rows_of([(version, i, 0.0) for i, version in enumerate(versions)]))
    return index


def test_the_online_window_does_not_grow_when_the_same_answers_come_again() -> None:
    index = index_of([0, 0, 1, 1])
    before = index.online(7)["trajectory_id"].tolist()
    for _ in range(3):  # the original counted these again and reached into older, even negative, positions
        index.apply(7, 1, rows_of([(1, 2, 0.0), (1, 3, 0.0)]))
    assert index.online(7)["trajectory_id"].tolist() == before == [2, 3]
    assert index.size == 4


def test_the_online_window_is_never_larger_than_what_is_stored() -> None:
    index = index_of([5] * 120, capacity=100)  # the original: n_online 120 of 100, a negative index
    assert index.online(7)["trajectory_id"].tolist() == list(range(20, 120))


def test_the_online_window_is_as_wide_as_asked() -> None:
    index = Index(capacity=100, fewest=1, max_staleness=8, recency=3)
    index.activate(frozenset({1}))
    index.apply(7, 1, rows_of([(v, v, 0.0) for v in range(6)]))
    assert index.online(7)["version"].tolist() == [3, 4, 5]


@given(st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(0, 12), min_size=1, max_size=9)), max_size=12))
def test_an_index_that_is_loaded_at_once_is_the_one_that_grew(arrivals: list[tuple[int, list[int]]]) -> None:
    grown, loaded = (Index(capacity=5, fewest=2, max_staleness=4, recency=2) for _ in range(2))
    for n, (prompt, versions) in enumerate(arrivals):
        grown.apply(prompt, 1, rows_of([(v, 100 * n + i, i % 3) for i, v in enumerate(versions)]))
    prompts = sorted({prompt for prompt, _ in arrivals})
    for index in (grown, loaded):
        index.advance(9)
    kept = [grown._since(x, -1) for x in prompts]
    starts = np.cumsum([0, *map(len, kept)])[:-1]
    loaded.load(np.concatenate([rows_of([]), *kept]), np.array(prompts, int), np.ones(len(prompts), int), starts)
    for index in (grown, loaded):
        index.activate(frozenset({1}))
    assert (grown.ready, grown.online_ready, grown.stocked) == (loaded.ready, loaded.online_ready, loaded.stocked)
    assert (grown.size, grown.newest) == (loaded.size, loaded.newest)
    for name in ("kth", "newest", "task_id"):
        assert grown.about(prompts)[name].tolist() == loaded.about(prompts)[name].tolist()
    assert grown.about(prompts)["spread"] == pytest.approx(loaded.about(prompts)["spread"], abs=1e-6)


def test_a_refreshed_trajectory_moves_to_its_new_version() -> None:
    index = index_of([0, 0, 0])
    index.apply(7, 1, rows_of([(3, 1, 0.5)]))
    assert index.eligible(7)["trajectory_id"].tolist() == [0, 2, 1]
    assert index.online(7)["reward"].tolist() == [0.5]


def test_of_equal_versions_the_later_arrival_stays() -> None:
    index = index_of([4, 4, 4, 4], capacity=2)
    assert index.eligible(7)["trajectory_id"].tolist() == [2, 3]


def test_a_prompt_is_drawable_at_once_after_its_trajectories_came() -> None:
    index = index_of([0, 0])
    index.apply(8, 1, rows_of([(0, 100, 0.0), (0, 101, 0.0)]))  # the original: only after the old pool was used up
    assert index.ready == {7, 8}


def test_a_paused_task_waits_and_comes_back() -> None:
    index = index_of([0, 0])
    index.apply(8, 2, rows_of([(3, 100, 0.0), (3, 101, 0.0)]))
    assert (index.ready, index.newest) == ({7}, 0)
    index.activate(frozenset({1, 2}))
    assert (index.ready, index.newest) == ({7, 8}, 3)
    index.activate(frozenset({2}))
    assert (index.ready, index.stocked) == ({8}, {8})


def test_what_is_ahead_of_the_learner_is_eligible() -> None:
    index = index_of([9, 9])
    index.advance(5)
    assert index.ready == {7}


def test_stale_prompts_are_stocked_but_not_ready() -> None:
    index = index_of([0, 0], max_staleness=2)
    index.advance(3)
    assert (index.ready, index.stocked, index.size) == (set(), {7}, 2)


def test_the_learner_s_version_never_goes_back() -> None:
    index = index_of([0, 0], max_staleness=2)
    index.advance(3)
    index.advance(1)
    assert index.version == 3
