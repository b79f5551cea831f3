"""What a node holds: bounded, whole or not there, and forgotten where it is damaged."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beo.bulk import holdings as module
from beo.bulk import words
from beo.bulk.holdings import Full, Holdings, Wrong
from beo.errors import BeoError
from tests.cluster import ROOT

ROOM = 10 * 1_000_000
SIZE = 1_000_000


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_MAX_BYTES", SIZE)


def data_of(number: int, size: int = SIZE) -> bytes:
    return b"%8d" % number * (size // 8)


def name_of(data: bytes, uid: int = 5) -> bytes:
    return words.name_of(uid, words.digest(data))


def put(held: Holdings, data: bytes) -> bytes:
    name = name_of(data)
    coming = held.begin(name, len(data))
    coming.write(data[: len(data) // 2])
    coming.write(data[len(data) // 2 :])
    coming.keep()
    return name


def read(held: Holdings, name: bytes) -> bytes | None:
    fd = held.open(name)
    if fd is None:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_what_was_kept_is_there_also_for_the_next_process(tmp_path: Path) -> None:
    held = Holdings(tmp_path, ROOM)
    name = put(held, data_of(1))
    assert read(held, name) == data_of(1) and held.news() == ([name], [])
    later = Holdings(tmp_path, ROOM)
    assert later.names() == [name] and read(later, name) == data_of(1) and later.used_bytes == SIZE


def test_what_was_used_last_stays_and_the_folder_never_outgrows_its_room(tmp_path: Path) -> None:
    held = Holdings(tmp_path, ROOM)
    first = put(held, data_of(0))
    for number in range(1, 30):
        assert read(held, first) == data_of(0)
        put(held, data_of(number))
        assert held.used_bytes <= ROOM
        assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= ROOM
    assert len(held.names()) == 10
    gained, lost = held.news()
    assert set(gained) == set(held.names()) and len(lost) == 20


def test_what_is_in_use_is_not_thrown_out_and_what_finds_no_room_says_so(tmp_path: Path) -> None:
    held = Holdings(tmp_path, ROOM)
    pinned = [put(held, data_of(number)) for number in range(10)]
    assert all(map(held.pin, pinned))
    with pytest.raises(Full, match=r"no room for another chunk \(10000000 bytes of 10000000 are in use\): raise held_"):
        held.begin(name_of(data_of(99)), SIZE)
    held.unpin(pinned[3])
    put(held, data_of(99))
    assert pinned[3] not in held and all(read(held, name) for name in pinned if name != pinned[3])


def test_a_chunk_that_is_not_what_its_name_says_is_never_there(tmp_path: Path) -> None:
    held = Holdings(tmp_path, ROOM)
    name = name_of(data_of(1))
    coming = held.begin(name, SIZE)
    coming.write(data_of(2))
    with pytest.raises(Wrong):
        coming.keep()
    assert name not in held and files(tmp_path) == set() and held.used_bytes == 0
    coming = held.begin(name, SIZE)
    with pytest.raises(Wrong, match="more bytes"):
        coming.write(data_of(1) + b"x")
    coming.drop()
    assert files(tmp_path) == set() and held.used_bytes == 0


def test_damage_is_noticed_when_it_is_wanted_and_the_chunk_is_forgotten(tmp_path: Path) -> None:
    first = Holdings(tmp_path, ROOM)
    names = [put(first, data_of(number)) for number in range(4)]
    for name, spoil in zip(names, ("change", "cut", "remove", ""), strict=True):
        path = first.path(name)
        if spoil == "change":
            path.write_bytes(b"x" + path.read_bytes()[1:])
        elif spoil == "cut":  # as a crash of the machine leaves it
            os.truncate(path, 0)
        elif spoil:
            path.unlink()
    later = Holdings(tmp_path, ROOM)
    assert [later.has(name) for name in names] == [False, False, False, True]
    assert later.names() == names[3:]
    held = Holdings(tmp_path, ROOM)
    assert held.has(names[3])
    held.path(names[3]).write_bytes(b"spoilt later")
    held.doubt(names[3])
    assert not held.has(names[3]) and held.news()[1] == [names[3]]


def test_a_link_in_the_place_of_a_chunk_leads_nowhere(tmp_path: Path) -> None:
    held = Holdings(tmp_path, ROOM)
    name = put(held, data_of(1))
    held.path(name).unlink()
    held.path(name).symlink_to("/etc/passwd")
    assert held.open(name) is None and name not in held


KILLED = """
import os, signal, sys
from pathlib import Path
from beo.bulk import holdings, words
if sys.argv[2] == "before":
    os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
held = holdings.Holdings(Path(sys.argv[1]), 10 ** 8)
data = b"abcdefgh" * 1000
coming = held.begin(words.name_of(5, words.digest(data)), len(data))
coming.write(data)
coming.keep()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_leaves_a_chunk_whole_or_not_at_all(tmp_path: Path, when: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), when], cwd=ROOT, timeout=30)
    assert done.returncode == -signal.SIGKILL and len(files(tmp_path)) == 1
    held = Holdings(tmp_path, ROOM)
    assert len(held.names()) == (when == "after") == len(files(tmp_path))
    assert all(map(held.has, held.names()))


def test_a_full_disk_lets_old_chunks_go_and_is_an_error_when_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Holdings(tmp_path, ROOM)
    real = os.write

    def write(fd: int, data: memoryview) -> int:
        size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        room = 3 * SIZE - size
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[:room])

    monkeypatch.setattr(os, "write", write)
    names = [put(held, data_of(number)) for number in range(5)]
    assert held.names() == names[2:]
    assert all(map(held.pin, names[2:]))
    coming = held.begin(name_of(data_of(9)), SIZE)
    with pytest.raises(BeoError, match="no space left on device"):
        coming.write(data_of(9))
    coming.drop()
    assert held.used_bytes == 3 * SIZE


def test_what_is_no_chunk_is_cleared_away(tmp_path: Path) -> None:
    held = Holdings(tmp_path, ROOM)
    name = put(held, data_of(1))
    (held.path(name).parent / "README").write_text("?")
    (tmp_path / "aside" / "half").write_text("?")
    later = Holdings(tmp_path, ROOM)
    assert files(tmp_path) == {words.parts_of(name)[1]} and later.names() == [name]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pufonr"), st.integers(0, 6)), max_size=60))
def test_the_folder_and_what_is_known_of_it_stay_the_same(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("held")
    held, room = Holdings(folder, 4_000), 4_000
    held._room_bytes = room  # less than the least that is given to people
    pins: dict[bytes, int] = {}
    for what, number in steps:
        data = data_of(number, 800 + 80 * number)
        name = name_of(data)
        if what == "p":
            try:
                put(held, data)
            except Full:
                assert sum(held.path(one).stat().st_size for one in pins) + len(data) > room
        elif what == "u" and held.pin(name):
            pins[name] = pins.get(name, 0) + 1
        elif what == "f" and name in pins:
            held.unpin(name)
            pins[name] -= 1
            if not pins[name]:
                del pins[name]
        elif what == "o":
            assert read(held, name) in (None, data)
        elif what == "n" and name not in pins:
            held.forget(name)
        elif what == "r" and not pins:
            held = Holdings(folder, room)
            held._room_bytes = room
        on_disk = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        assert on_disk.keys() == {words.parts_of(name)[1] for name in held.names()}
        assert held.used_bytes == sum(on_disk.values()) <= room
        assert pins.keys() <= set(held.names())
