"""Reading a log while it grows and rotates: nothing twice, nothing lost but what was rotated away, and that is told."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierline.backends.jobs.rundir import open_plain
from tierline.server.logs import read_log


def rotate(log: Path) -> None:
    log.replace(log.with_name("log.1"))
    log.write_bytes(b"")


def append(log: Path, data: bytes) -> None:
    with open(log, "ab") as file:
        file.write(data)


def test_no_log_yet_is_an_empty_one(tmp_path: Path) -> None:
    chunk = read_log(tmp_path / "log", 0, 10)
    assert (chunk.data, chunk.next_mark, chunk.gap, chunk.at_end) == (b"", 0, False, True)


def test_marks_go_on_over_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append(log, b"abcdef")
    first = read_log(log, 0, 4)
    assert (first.data, first.at_end) == (b"abcd", False)
    rotate(log)
    append(log, b"gh")
    second = read_log(log, first.next_mark, 100)
    assert (second.data, second.gap, second.at_end) == (b"efgh", False, True)
    assert read_log(log, second.next_mark, 100).data == b""


def test_plain_numbers_count_from_the_oldest_and_from_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append(log, b"abc")
    rotate(log)
    append(log, b"def")
    assert read_log(log, 2, 3).data == b"cde"
    assert read_log(log, 4, 100).data == b"ef"
    assert read_log(log, 99, 100).data == b""
    assert read_log(log, -4, 100).data == b"cdef"
    assert read_log(log, -100, 100).data == b"abcdef"


def test_output_that_was_rotated_away_is_a_gap(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append(log, b"one")
    mark = read_log(log, 0, 2).next_mark
    rotate(log)
    append(log, b"two")
    (tmp_path / "keeps-the-inode").hardlink_to(tmp_path / "log.1")
    rotate(log)
    append(log, b"three")
    chunk = read_log(log, mark, 100)
    assert (chunk.data, chunk.gap) == (b"twothree", True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(min_size=1, max_size=9), st.just(None)), max_size=14), st.integers(1, 7))
def test_a_reader_that_keeps_up_sees_every_byte_once(steps: list[bytes | None], limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.write_bytes(b"")
        mark, seen, written = 0, b"", b""
        for step in steps:
            if step is None:
                rotate(log)
            else:
                append(log, step)
                written += step
            while True:
                chunk = read_log(log, mark, limit)
                assert not chunk.gap
                mark, seen = chunk.next_mark, seen + chunk.data
                if chunk.at_end:
                    break
        assert seen == written


def test_what_a_job_puts_in_the_place_of_its_log_is_not_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(log)
    append(tmp_path / "log.1", b"old")
    assert read_log(log, 0, 10).data == b"old"
    log.unlink()
    log.mkdir()
    assert read_log(log, 0, 10).data == b"old"
    log.rmdir()
    os.link(tmp_path / "log.1", log)
    assert read_log(log, 0, 10).data == b"old"


def test_a_rotation_between_the_two_halves_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    append(log, b"a")
    rotate(log)
    append(log, b"b")
    mark = read_log(log, 0, 10).next_mark
    append(log, b"c")
    opened = []

    def open_and_rotate(path: Path) -> BinaryIO:
        opened.append(path)
        file = open_plain(path)
        if len(opened) == 1:
            rotate(log)
            append(log, b"d")
        return file

    monkeypatch.setattr("tierline.server.logs.open_plain", open_and_rotate)
    chunk = read_log(log, mark, 10)
    assert (chunk.data, chunk.gap) == (b"cd", False)
