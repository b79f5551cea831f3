"""The door: the kernel says who knocks, and whoever dawdles, crowds or talks nonsense holds up nobody."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import door
from beo.errors import Conflict, NoHead, Refused

KEY = "k" * 40


class Porter:
    """A door at which everybody is let in at once."""

    def __init__(self, folder: Path) -> None:
        self.knocks: list[tuple[int, int, str]] = []
        self.folder = str(folder)
        self.door = door.Door(self.folder, self._knock)

    def _knock(self, visitor: int, uid: int, gid: int, groups: tuple[int, ...], key: str) -> None:
        self.knocks.append((uid, gid, key))
        error = Refused("not you", "", "go").to_dict() if key.startswith("x") else None
        self.door.answer(visitor, "ann", error)

    def visit(self) -> socket.socket:
        """Come in by hand."""
        visitor = socket.socket(socket.AF_UNIX)
        visitor.settimeout(5.0)
        visitor.connect(f"{self.folder}/{door.NAME}")
        return visitor


@pytest.fixture
def porter(tmp_path: Path) -> Iterator[Porter]:
    found = Porter(tmp_path)
    yield found
    found.door.close()


def test_the_kernel_says_who_knocks(porter: Porter) -> None:
    assert door.knock(porter.folder, KEY) == "ann"
    assert porter.knocks == [(os.geteuid(), os.getegid(), KEY)]


def test_a_refusal_comes_as_it_was_said(porter: Porter) -> None:
    with pytest.raises(Refused, match="not you: go"):
        door.knock(porter.folder, "x")


def test_who_says_nothing_holds_up_nobody(porter: Porter) -> None:
    idle = [porter.visit() for _ in range(door.VISITORS_PER_USER_MAX - 1)]
    assert door.knock(porter.folder, KEY) == "ann"
    for visitor in idle:
        visitor.close()


def test_one_user_cannot_crowd_the_door(porter: Porter) -> None:
    idle = [porter.visit() for _ in range(door.VISITORS_PER_USER_MAX)]
    with pytest.raises((Conflict, NoHead), match="door"):
        door.knock(porter.folder, KEY)
    for visitor in idle:
        visitor.close()


@pytest.mark.parametrize("words", [b"\n", b"{}\n", b"[]\n", b"[" * 200 + b"\n", b"\xff\n", b"a" * 1000, b'{"key": 1'])
def test_nonsense_is_shown_out_and_the_next_is_served(porter: Porter, words: bytes) -> None:
    visitor = porter.visit()
    visitor.sendall(words)
    if words.endswith(b"\n") or len(words) > door.WORDS_BYTES_MAX:
        try:
            assert visitor.recv(10) == b""
        except ConnectionResetError:
            pass
    visitor.close()
    assert door.knock(porter.folder, KEY) == "ann"


def test_a_visitor_who_leaves_before_the_answer_is_no_trouble(porter: Porter) -> None:
    visitor = porter.visit()
    visitor.sendall(b'{"key": "' + KEY.encode() + b'"}\n')
    visitor.close()
    assert door.knock(porter.folder, KEY) == "ann"
    assert any(thread.name == "beo-door" for thread in threading.enumerate())


def test_a_folder_without_a_door_says_so(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no door for you"):
        door.find(str(tmp_path))
    with pytest.raises(Refused, match="no door for you"):
        door.knock(str(tmp_path), KEY)


def test_a_door_that_nobody_keeps_is_told(porter: Porter, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    (tmp_path / "left").mkdir()
    listener.bind(str(tmp_path / "left" / door.NAME))
    listener.close()
    with pytest.raises(NoHead, match="nobody is at the door"):
        door.knock(str(tmp_path / "left"), KEY)
