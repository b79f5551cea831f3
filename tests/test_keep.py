"""What a head has promised is kept over every crash: the register's file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from beo.errors import BeoError
from beo.ha import keep
from beo.ha.acts import Kept
from beo.ha.keep import Keep
from beo.votes import Cfg
from tests.cluster import wait_for

FIRST = Kept(1, Cfg(1, 1, ("A",)), chosen=True)
SECOND = Kept(2, Cfg(2, 4, ("A", "B"), (("n1/a", "n2/b", "n3/c"),)))
STRIDE = 4096


@contextmanager
def kept(path: Path, fails: Callable[[BaseException], None] | None = None) -> Iterator[tuple[Keep, list[int]]]:
    """A register's file, and the serials that it says are stored."""
    stored: list[int] = []

    def unexpected(error: BaseException) -> None:
        raise AssertionError(error)

    made = Keep(path, stored.append, fails or unexpected)
    try:
        yield made, stored
    finally:
        made.close()


def test_nothing_was_kept_where_there_is_no_file(tmp_path: Path) -> None:
    assert keep.read(tmp_path / "register") is None


def test_what_is_stored_is_there_for_the_next_head(tmp_path: Path) -> None:
    path = tmp_path / "register"
    for value in (FIRST, SECOND, FIRST):
        with kept(path) as (file, stored):
            file.store(7, value)
            wait_for(stored.__len__, "it to be stored")
            assert stored == [7]
            assert keep.read(path) == value, "it was said to be durable"
        assert keep.read(path) == value
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_the_last_of_several_stands_for_those_before_it(tmp_path: Path) -> None:
    path = tmp_path / "register"
    with kept(path) as (file, stored):
        for serial in range(1, 200):
            file.store(serial, Kept(serial))
        wait_for(lambda: bool(stored) and stored[-1] == 199, "the last one")
        assert stored == sorted(stored)
    assert keep.read(path) == Kept(199)


@pytest.mark.parametrize("length", [0, 1, 8, 20, 40, 60, 100])
def test_a_crash_within_a_write_leaves_what_was_before(tmp_path: Path, length: int) -> None:
    path = tmp_path / "register"
    with kept(path) as (file, _):
        file.write(FIRST)
        before = path.read_bytes()
        file.write(SECOND)
    after = path.read_bytes().ljust(2 * STRIDE, b"\0")
    before = before.ljust(2 * STRIDE, b"\0")
    at = next(n for n in range(0, 2 * STRIDE, STRIDE) if before[n : n + STRIDE] != after[n : n + STRIDE])
    path.write_bytes(before[:at] + after[at : at + length] + before[at + length :])
    assert keep.read(path) in (FIRST, SECOND)
    assert keep.read(path) == FIRST or length >= 60


@pytest.mark.parametrize("content", [b"", b"beokept1", bytes(2 * STRIDE), b"\x07\xffnothing of ours" * 40])
def test_a_damaged_register_is_refused_and_the_cure_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "register"
    path.write_bytes(content)
    with pytest.raises(BeoError, match=r"register is damaged .*: .*rejoin --wipe"):
        keep.read(path)


def test_one_flipped_bit_never_changes_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "register"
    with kept(path) as (file, _):
        file.write(FIRST)
        file.write(SECOND)
    whole = path.read_bytes()
    for n in range(len(whole)):
        if whole[n] or n % 97 == 0:
            path.write_bytes(whole[:n] + bytes([whole[n] ^ 4]) + whole[n + 1 :])
            assert keep.read(path) in (FIRST, SECOND)


def test_a_disk_that_fails_is_told_and_not_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "register"
    failures: list[BaseException] = []
    with kept(path, failures.append) as (file, stored):
        os.dup2(os.open("/dev/full", os.O_RDWR | os.O_CLOEXEC), file._fd)
        file.store(1, FIRST)
        wait_for(lambda: bool(failures), "the failure")
        file.store(2, SECOND)
        assert not stored and len(failures) == 1
