"""What the agent says and what signals ask for is heard once, and never lost."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo.checkpoints.word import GO_ON, HALT, TAKE_ONE, Signals, Word
from beo.word import SIZE_BYTES


def write(path: Path, words: bytes) -> None:
    """As the agent does (beo/word.py): in place, the first byte last."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.write(b"\0")
        file.flush()
        file.write(words[1:].ljust(SIZE_BYTES - 1, b"\0"))
        file.flush()
        file.seek(0)
        file.write(words[:1] or b"\0")


def said(**words: object) -> bytes:
    return json.dumps(words).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "word", b"")
    return tmp_path / "word"


def test_a_word_is_heard_until_it_is_done_and_again_when_it_is_written_anew(path: Path) -> None:
    word = Word(str(path))
    assert word.look() is None
    write(path, said(do="checkpoint", why="checkpoint"))
    told = word.look()
    assert told and (told.do, told.why, told.leaving) == (TAKE_ONE, "checkpoint", ())
    assert word.look() == told
    word.done(told)
    assert word.look() is None
    write(path, b"")
    write(path, said(do="checkpoint", why="checkpoint"))
    os.utime(path, ns=(1, told.when_ns + 1))  # the file system's clock may be coarse
    assert word.look()
    write(path, said(do="halt", why="drain", leaving=["node02"]))
    told = word.look()
    assert told and (told.do, told.leaving) == (HALT, ("node02",))
    word.close()


@pytest.mark.parametrize(
    "words",
    [
        b"{",
        b'{"do": "ha',
        b"[1]",
        b'"halt"',
        b"\xff\xfe",
        b"x" * SIZE_BYTES,
        said(),
        said(do="dance"),
        said(do=["halt"]),
        said(do="halt", leaving=7),
    ],
)
def test_words_that_are_half_written_or_of_another_version_say_nothing(words: bytes, path: Path) -> None:
    word = Word(str(path))
    write(path, words)
    assert word.look() is None
    word.close()


@pytest.mark.parametrize("content", [None, b"short"])
def test_without_an_agent_nothing_is_said(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "word"
    if content is not None:
        path.write_bytes(content)
    assert Word(str(path)).look() is None and Word(None).look() is None


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """What a program's own handler of SIGUSR1 hears."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGUSR1, before)


def test_signals_are_counted_and_the_programs_own_handler_is_called_as_well(heard: list[int]) -> None:
    own = signal.getsignal(signal.SIGUSR1)
    signals = Signals()
    assert signals.wish(signals.counts()) == GO_ON
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signals.wish(signals.counts()) == TAKE_ONE and heard == [signal.SIGUSR1]
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.wish(signals.counts()) == HALT
    signals.close()
    assert signal.getsignal(signal.SIGUSR1) is own
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_comes_while_the_ranks_agree_is_not_lost() -> None:
    signals = Signals()
    os.kill(os.getpid(), signal.SIGUSR1)
    counts = signals.counts()
    os.kill(os.getpid(), signal.SIGUSR1)  # in the middle of the agreement, or of the checkpoint
    assert signals.wish(counts) == TAKE_ONE
    signals.done(counts)
    assert signals.wish(signals.counts()) == TAKE_ONE
    signals.done(signals.counts())
    assert signals.wish(signals.counts()) == GO_ON
    signals.close()
