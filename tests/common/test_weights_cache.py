"""What is held stays, what is not makes room, and nothing enters half."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tba_common.weights_cache import KEEP, WeightCache, private_copy


def writes(text: str) -> Callable[[Path], None]:
    def fill(directory: Path) -> None:
        (directory / "text").write_text(text)

    return fill


def never(directory: Path) -> None:
    raise AssertionError(f"{directory} was there already")


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_what_was_filled_once_is_found(tmp_path: Path) -> None:
    WeightCache(tmp_path).keep("a", writes("text"))
    assert (WeightCache(tmp_path).keep("a", never).directory / "text").read_text() == "text"


def test_the_least_recently_used_makes_room(tmp_path: Path) -> None:
    cache = WeightCache(tmp_path)
    for key in "abc":
        cache.keep(key, writes(key))
    cache.keep("a", never)
    cache.keep("d", writes("d"))
    assert names(tmp_path) == ["a", "c", "d"]
    assert KEEP == 3


def test_what_is_held_stays_until_it_is_let_go(tmp_path: Path) -> None:
    cache = WeightCache(tmp_path)
    held = cache.keep("a", writes("a"))
    for key in "bcdef":
        WeightCache(tmp_path).keep(key, writes(key))
    assert held.directory.is_dir()
    del held
    cache.keep("g", writes("g"))
    assert names(tmp_path) == ["e", "f", "g"]


HOLDER = """
import sys; from pathlib import Path; from tba_common.weights_cache import WeightCache
held = WeightCache(Path(sys.argv[1])).keep("a", lambda directory: None)
print("held", flush=True)
sys.stdin.read()
"""


def test_what_another_process_holds_stays_until_that_is_killed(tmp_path: Path) -> None:
    cache = WeightCache(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        for key in "bcde":
            cache.keep(key, writes(key))
        assert "a" in names(tmp_path)
        holder.kill()
    cache.keep("f", writes("f"))
    assert "a" not in names(tmp_path)


def test_what_could_not_be_filled_is_not_there_and_leaves_nothing(tmp_path: Path) -> None:
    def fails(directory: Path) -> None:
        (directory / "half").write_text("")
        raise OSError("the network is gone")

    cache = WeightCache(tmp_path)
    with pytest.raises(OSError, match="the network is gone"):
        cache.keep("a", fails)
    cache.keep("a", writes("a"))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["text"]
    assert names(tmp_path) == ["a"]


def test_of_two_that_want_the_same_one_fills_and_the_other_finds(tmp_path: Path) -> None:
    filling, go_on, found = threading.Event(), threading.Event(), []

    def slowly(directory: Path) -> None:
        filling.set()
        assert go_on.wait(60)

    first = threading.Thread(target=lambda: found.append(WeightCache(tmp_path).keep("a", slowly)))
    second = threading.Thread(target=lambda: found.append(WeightCache(tmp_path).keep("a", never)))
    first.start()
    assert filling.wait(60)
    second.start()
    go_on.set()
    first.join(60)
    second.join(60)
    assert [held.directory for held in found] == [tmp_path / "a"] * 2


def test_a_private_copy_goes_with_its_holder() -> None:
    held = private_copy("a", writes("a"))
    directory = held.directory
    assert (directory / "text").read_text() == "a"
    del held
    assert not directory.exists()


def test_a_private_copy_that_could_not_be_filled_is_gone() -> None:
    seen: list[Path] = []

    def fails(directory: Path) -> None:
        seen.append(directory)
        raise OSError("the network is gone")

    with pytest.raises(OSError, match="the network is gone"):
        private_copy("a", fails)
    assert [directory.exists() for directory in seen] == [False]
