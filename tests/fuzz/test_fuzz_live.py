"""Real daemons among strangers: bytes without sense, connections that say nothing, handshakes cut in the middle.

An honest client is answered meanwhile, and afterwards nothing is held for the strangers.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import messages as ms
from beo import wire
from tests.cluster import PATIENCE_S, Cluster, running, wait_for
from tests.fuzz.bytes import BULK, CLIENT, bent, dice, rounds

HALF_OPEN = 200
GROWTH_MAX_BYTES = 64 << 20  # of a daemon, over all that strangers do to it
GREETING = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0CURVE" + bytes(48)  # ZMTP 3.0, whole


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("live") / "beo", workers=1) as made:
        yield made


def ports(cluster: Cluster) -> dict[str, tuple[str, int]]:
    """The TCP ports that a stranger can reach, by the daemon behind them."""
    found = cluster.home.cluster()
    addresses = {"head": found.heads[0], "bulk": found.bulk[0], "node01": cluster.node("node01").address}
    return {name: (a.rpartition(":")[0], int(a.rpartition(":")[2])) for name, a in addresses.items()}


def daemon(cluster: Cluster, name: str) -> int:
    """The process behind a port."""
    return cluster.pid("head" if name == "bulk" else name)


def files(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_bytes(pid: int) -> int:
    """What it holds of memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("name", ["head", "bulk", "node01"])
def test_strangers_hold_nobody_up_and_leave_nothing_behind(cluster: Cluster, name: str) -> None:
    random = dice(f"live {name}")
    address, pid = ports(cluster)[name], daemon(cluster, name)
    before, held_bytes = files(pid), resident_bytes(pid)
    silent = [socket.create_connection(address) for _ in range(HALF_OPEN)]
    for count, stranger in enumerate(silent):  # all stages of a handshake, and then nothing more
        stranger.sendall(GREETING[: count % (len(GREETING) + 1)])
    for _ in range(rounds(100)):
        with socket.create_connection(address) as stranger:
            start = GREETING[: random.choice((0, 0, 11, 64))]
            try:
                stranger.sendall(start + random.randbytes(random.choice((1, 100, 5_000))))
            except OSError:
                continue  # it hung up
    cluster.wait(cluster.submit(["true"]))
    for stranger in silent:
        stranger.close()
    wait_for(lambda: files(pid) <= before + 4, "their connections are gone", PATIENCE_S)
    assert daemon(cluster, name) == pid
    assert resident_bytes(pid) < held_bytes + GROWTH_MAX_BYTES


@pytest.mark.parametrize("name", ["head", "bulk"])
def test_who_has_a_key_and_talks_nonsense_holds_nobody_up(cluster: Cluster, name: str) -> None:
    found, pid = cluster.home.cluster(), cluster.pid("head")
    context = wire.new_context()
    address = (found.heads if name == "head" else found.bulk)[0]
    connection = wire.Connection(address, found.key, cluster.home.secret("admin"), context)
    harmless = [word for word in (CLIENT if name == "head" else BULK) if not isinstance(word, ms.Submit)]
    try:
        assert connection.send(1, b"", PATIENCE_S)
        for number, body in enumerate(bent(f"nonsense {name}", harmless, 1_500)):
            connection.send(number, body[: ms.MESSAGE_SIZE_MAX_BYTES], 1.0)
            connection.receive()
        cluster.wait(cluster.submit(["true"]))
    finally:
        connection.close()
        context.destroy(linger=0)
    assert cluster.pid("head") == pid
    assert "Traceback" not in (cluster.home.logs / "head.log").read_text()
