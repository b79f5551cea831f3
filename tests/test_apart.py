"""A rank that is a machine of its own, without a job: two of them on this machine."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from beo.netlink import Netlink
from beo.worker import apart
from tests.cluster import wait_for

pytestmark = pytest.mark.root

PORT = 7_000  # of a network that nobody else has


def rank(number: int, places: apart.Places, does: Callable[[], None]) -> int:
    """Fork a rank that does something on its own machine, and ends as one of a job does."""
    if pid := os.fork():
        return pid
    try:
        if inside := apart.go(number, places):
            os.waitpid(inside, 0)
            apart.leave()
        else:
            apart.let_in(number, places)
            does()
            apart.await_last_words()
    except BaseException:
        traceback.print_exc()
    os._exit(0)


def test_what_a_rank_sent_before_its_end_arrives_though_the_other_is_let_in_later(tmp_path: Path) -> None:
    """A rank that has moved and was done before the others were back took its last words along."""
    spots = {name: tmp_path / name for name in ("listens", "away", "ended", "heard")}
    places = apart.Places(secrets.randbelow(1 << 24), 30_000 + secrets.randbelow(2_000), ("127.0.0.1", "127.0.0.1"))

    def speak() -> None:
        wait_for(spots["listens"].exists, "the other listens")
        link = socket.create_connection((str(apart.address_of(1)), PORT))
        wait_for(spots["away"].exists, "the other is away")
        link.send(b"last words")
        link.close()
        spots["ended"].touch()

    def hear() -> None:
        with socket.create_server((str(apart.address_of(1)), PORT)) as server:
            spots["listens"].touch()
            link, _ = server.accept()
            own = Netlink()
            own.raise_up(socket.if_nametoindex(apart.INTERFACE), apart.mac_of(1, is_in=False))
            own.close()
            spots["away"].touch()
            wait_for(spots["ended"].exists, "the first one ends")
            time.sleep(0.3)
            apart.let_in(1, places)
            link.settimeout(20.0)
            with suppress(TimeoutError):
                spots["heard"].write_bytes(link.recv(100))

    for pid in (rank(0, places, speak), rank(1, places, hear)):
        os.waitpid(pid, 0)
    sys.stdout.flush()
    assert spots["heard"].exists() and spots["heard"].read_bytes() == b"last words"
