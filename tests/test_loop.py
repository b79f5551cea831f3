"""The wardens' loop, and what hangs on it: no byte of a rank's input is lost, whatever becomes ready at one time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from beo.worker.loop import BROKEN, READ, WRITE, Loop
from beo.worker.pipes import Input


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made._epoll.close()


def run(loop: Loop, seconds: float = 0.05) -> None:
    """Let it turn for a while."""
    loop.after(seconds, "the end", loop.stop)
    loop.run()


def test_what_became_ready_for_something_that_nobody_waits_for_any_more_is_not_told(loop: Loop) -> None:
    told: list[str] = []
    pipes = [os.pipe() for _ in range(2)]

    def first(own: int, other: int) -> None:
        """Both are ready; whoever is called first makes the other one wait for its end alone."""
        told.append("first")
        loop.unwatch(own)
        loop.watch(other, lambda: told.append("stale"), BROKEN)

    for number, (_, fd) in enumerate(pipes):
        other = pipes[1 - number][1]
        loop.watch(fd, lambda fd=fd, other=other: first(fd, other), WRITE)  # type: ignore[misc]
    run(loop)
    assert told == ["first"]
    for pair in pipes:
        for fd in pair:
            os.close(fd)


def test_input_that_comes_in_the_moment_in_which_the_rank_takes_more_is_not_cut(loop: Loop) -> None:
    """The pipe has room again and the next piece is there in one turn; with the piece, all of it fits."""
    given = Input(loop, lambda: None)
    come, tell = os.pipe()
    reading = given.open()
    given.feed(0, b"x" * 100_000, False)  # a pipe holds 64 KiB: the rest waits for room

    def feed() -> None:
        os.read(come, 1)
        given.feed(given.have, b"y", False)

    loop.watch(come, feed, READ)
    os.write(tell, b".")
    got = os.read(reading, 1 << 20)
    run(loop)
    assert not given.closed, "nobody has closed the other end"
    given.feed(given.have, b"z", True)
    while data := os.read(reading, 1 << 20):
        got += data
    assert got == b"x" * 100_000 + b"yz"
    for fd in (come, tell, reading):
        os.close(fd)
