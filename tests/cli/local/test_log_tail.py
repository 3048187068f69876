"""Following a log gives every whole line once."""

from __future__ import annotations

from pathlib import Path

from tba_cli.local.log_tail import LogTail, last_lines


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def test_a_line_is_given_once_and_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "one.log"
    tail = LogTail(path)
    assert tail.lines() == []
    append(path, b"first\nsec")
    assert tail.lines() == ["first"]
    append(path, b"ond\n")
    assert tail.lines() == ["second"]
    assert tail.lines() == []


def test_what_was_there_before_is_not_told_again(tmp_path: Path) -> None:
    path = tmp_path / "one.log"
    append(path, b"of the last run\n")
    tail = LogTail(path)
    append(path, b"of this one\n")
    assert tail.lines() == ["of this one"]


def test_bytes_that_are_no_text_do_not_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "one.log"
    tail = LogTail(path)
    append(path, b"\xff\xfe\nnext\n")
    assert tail.lines()[-1] == "next"


def test_a_line_without_end_does_not_stop_it_either(tmp_path: Path) -> None:
    path = tmp_path / "one.log"
    tail = LogTail(path)
    append(path, b"x" * (1 << 20) + b"end\n")
    assert [len(line) for line in tail.lines()] == [1 << 20]
    assert tail.lines() == ["end"]


def test_the_last_lines_of_a_log_that_is_not_there_are_none(tmp_path: Path) -> None:
    append(tmp_path / "one.log", b"a\nb\nc\n")
    assert last_lines(tmp_path / "one.log", 2) == "b\nc"
    assert last_lines(tmp_path / "another.log", 2) == ""
